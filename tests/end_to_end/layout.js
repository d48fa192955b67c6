// Find texts, players, pictures and controls whose boxes overlap, and texts with only a few letters on each line.
() => {
  const LETTERS_A_LINE = 6;
  const OVERLAP = 3;
  const style = (element) => getComputedStyle(element);

  // The part of a box that its ancestors do not clip, or null.
  function clip(box, element) {
    let { left, top, right, bottom } = box;
    for (let outer = element; outer; outer = outer.parentElement) {
      const { overflowX, clipPath, visibility, opacity } = style(outer);
      if (visibility === "hidden" || opacity === "0" || clipPath !== "none") return null;
      if (overflowX === "visible") continue;
      const edge = outer.getBoundingClientRect();
      [left, top] = [Math.max(left, edge.left), Math.max(top, edge.top)];
      [right, bottom] = [Math.min(right, edge.right), Math.min(bottom, edge.bottom)];
    }
    return right - left > 1 && bottom - top > 1 ? { left, top, right, bottom } : null;
  }

  const boxes = [];
  const squeezed = [];
  function add(node, element, box, name) {
    const seen = clip(box, element);
    if (seen) boxes.push({ node, name, ...seen });
  }

  for (const element of document.querySelectorAll("body *")) element.style.contentVisibility = "visible";
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    const text = node.data.trim().replace(/\s+/g, " ");
    if (!text || element.closest("script, style, noscript, svg") || !element.checkVisibility()) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    const lines = [...range.getClientRects()].filter(({ width }) => width > 0);
    // A line's box has room above and below its letters, which neighbouring lines may share.
    for (const { left, top, right, bottom, height } of lines) {
      add(node, element, { left, right, top: top + 0.15 * height, bottom: bottom - 0.15 * height }, text.slice(0, 60));
    }
    const rows = new Set(lines.map(({ top }) => Math.round(top))).size;
    if (rows > 2 && text.length / rows < LETTERS_A_LINE) squeezed.push(`${rows} lines: ${text.slice(0, 60)}`);
  }
  for (const element of document.querySelectorAll("audio, img, svg, input, button")) {
    if (element.checkVisibility()) add(element, element, element.getBoundingClientRect(), `${element.tagName} ${element.className.baseVal ?? element.className}`);
  }

  const overlaps = [];
  for (const [index, one] of boxes.entries()) {
    for (const other of boxes.slice(index + 1)) {
      if (one.node.contains(other.node) || other.node.contains(one.node)) continue;
      const width = Math.min(one.right, other.right) - Math.max(one.left, other.left);
      const height = Math.min(one.bottom, other.bottom) - Math.max(one.top, other.top);
      if (width > OVERLAP && height > OVERLAP) overlaps.push(`${one.name} | ${other.name}`);
    }
  }
  return { boxes: boxes.length, overlaps, squeezed };
};
