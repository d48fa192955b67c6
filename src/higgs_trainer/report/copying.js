"use strict";

// The copy buttons. data-copies names an element on the page, or "csv" for the logged numbers.
function listTexts() {
  return numbers.map(({ run, columns }) => {
    const keys = Object.keys(columns);
    const rows = (columns.step ?? []).map((_, row) => [run, ...keys.map((key) => columns[key][row] ?? "")]);
    const quote = (cell) => (/[",\n]/.test(cell) ? `"${String(cell).replaceAll('"', '""')}"` : String(cell));
    return [["run", ...keys], ...rows].map((cells) => cells.map(quote).join(",")).join("\n");
  });
}

for (const button of document.querySelectorAll("[data-copies]")) {
  const status = button.parentElement.querySelector("[role=status]");
  button.addEventListener("click", async () => {
    const element = document.getElementById(button.dataset.copies);
    try {
      await navigator.clipboard.writeText(element ? element.textContent : listTexts().join("\n"));
      status.textContent = "Copied.";
    } catch {
      // The browser refused access to the clipboard: select the text instead.
      if (element) getSelection().selectAllChildren(element);
      status.textContent = element ? "Selected: copy it with the keyboard." : "This browser does not allow pages to copy.";
    }
  });
}
