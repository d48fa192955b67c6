"use strict";

// The blind test: hides the names of the clips and what was heard, and shuffles the clips of each sentence.
const blindSwitch = document.getElementById("blind");
const isBlind = () => blindSwitch.getAttribute("aria-checked") === "true";

function shuffle(items) {
  const shuffled = [...items];
  for (let last = shuffled.length - 1; last > 0; last -= 1) {
    const other = Math.floor(Math.random() * (last + 1));
    [shuffled[last], shuffled[other]] = [shuffled[other], shuffled[last]];
  }
  return shuffled;
}

// The clips of each sentence in their first order, with all that tells which clip it is.
const cards = [...document.querySelectorAll(".cards > li")].map((card) => ({
  card,
  reveal: card.querySelector(".reveal button"),
  status: card.querySelector(".reveal [role=status]"),
  rows: [...card.querySelectorAll(".clips")].map((row) => ({
    row,
    clips: [...row.children].map((clip) => {
      const audio = clip.querySelector("audio");
      return { clip, audio, label: audio?.getAttribute("aria-label"), name: clip.querySelector("figcaption b").textContent };
    }),
  })),
}));

function showName(clip, name, label) {
  clip.clip.querySelector("figcaption b").textContent = name;
  clip.audio?.setAttribute("aria-label", label);
}

function hideNames({ card, reveal, status, rows }) {
  const sentence = card.querySelector("h3").textContent;
  let number = 0;
  for (const { row, clips } of rows) {
    const shuffled = shuffle(clips);
    row.append(...shuffled.map(({ clip }) => clip));
    for (const clip of shuffled) {
      clip.letter = String.fromCharCode(65 + (number % 26));
      number += 1;
      showName(clip, clip.letter, `Clip ${clip.letter}: ${sentence}`);
    }
  }
  card.classList.add("is-blind");
  reveal.parentElement.hidden = false;
  reveal.hidden = false;
  status.textContent = "";
}

function revealNames({ card, reveal, status, rows }) {
  const clips = rows.flatMap((row) => row.clips).sort((one, other) => (one.letter < other.letter ? -1 : 1));
  for (const clip of clips) showName(clip, `${clip.letter}: ${clip.name}`, clip.label);
  card.classList.remove("is-blind");
  // The button disappears, so the focus goes to the first clip.
  if (document.activeElement === reveal) card.querySelector("audio")?.focus();
  reveal.hidden = true;
  status.textContent = `${clips.map(({ letter, name }) => `${letter} is ${name}`).join(", ")}.`;
}

function restore({ card, reveal, rows }) {
  for (const { row, clips } of rows) {
    row.append(...clips.map(({ clip }) => clip));
    for (const clip of clips) showName(clip, clip.name, clip.label);
  }
  card.classList.remove("is-blind");
  reveal.parentElement.hidden = true;
}

if (blindSwitch) {
  blindSwitch.parentElement.hidden = false;
  blindSwitch.addEventListener("click", () => {
    for (const audio of document.querySelectorAll("audio")) audio.pause();
    blindSwitch.setAttribute("aria-checked", String(!isBlind()));
    cards.forEach(isBlind() ? hideNames : restore);
    blindSwitch.parentElement.querySelector("[role=status]").textContent = isBlind()
      ? "The names are hidden, and the clips of each sentence are in random order. “Show the names” is below each sentence."
      : "The names are shown.";
  });
  for (const card of cards) card.reveal.addEventListener("click", () => revealNames(card));
}
