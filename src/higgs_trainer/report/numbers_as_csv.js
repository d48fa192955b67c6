"use strict";

// The logged numbers of all runs as CSV, for the copy button.
copiedTexts.csv = () =>
  numbers
    .map(({ run, columns }) => {
      const keys = Object.keys(columns);
      const rows = (columns.step ?? []).map((_, row) => [run, ...keys.map((key) => columns[key][row] ?? "")]);
      const quote = (cell) => (/[",\n]/.test(cell) ? `"${String(cell).replaceAll('"', '""')}"` : String(cell));
      return [["run", ...keys], ...rows].map((cells) => cells.map(quote).join(",")).join("\n");
    })
    .join("\n");
