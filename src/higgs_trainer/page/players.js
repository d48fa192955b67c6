"use strict";

// Moves a line over the spectrogram of the clip that plays. Starting a clip pauses the others.
for (const audio of document.querySelectorAll("audio")) {
  const sound = audio.closest(".clip").querySelector(".sound");
  const show = () => {
    sound?.style.setProperty("--played", audio.duration ? audio.currentTime / audio.duration : 0);
    if (!audio.paused) requestAnimationFrame(show);
  };
  audio.addEventListener("play", () => {
    for (const other of document.querySelectorAll("audio")) if (other !== audio) other.pause();
    sound?.style.setProperty("--playing", 1);
    show();
  });
  audio.addEventListener("seeked", show);
  audio.addEventListener("ended", () => sound?.style.setProperty("--playing", 0));
}
