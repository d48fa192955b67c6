"use strict";

// The copy buttons. data-copies names the element whose text is copied, or a function that returns the text.
const copiedTexts = {};

for (const button of document.querySelectorAll("[data-copies]")) {
  const status = button.parentElement.querySelector("[role=status]");
  button.addEventListener("click", async () => {
    const element = document.getElementById(button.dataset.copies);
    try {
      await navigator.clipboard.writeText(element ? element.textContent : copiedTexts[button.dataset.copies]());
      status.textContent = "Copied.";
    } catch {
      // The browser refused access to the clipboard: select the text instead.
      if (element) getSelection().selectAllChildren(element);
      status.textContent = element ? "Selected: copy it with the keyboard." : "This browser does not allow pages to copy.";
    }
  });
}
