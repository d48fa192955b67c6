// The theme adds these elements after the page has loaded, so they are adjusted whenever the page changes.
const adjust = () => {
  // Each copy button is in a <nav>. Without a name, screen readers list dozens of equal landmarks.
  for (const nav of document.querySelectorAll("nav.md-code__nav:not([role])")) nav.setAttribute("role", "presentation");
  // A wide table scrolls sideways; the keyboard must be able to do that too.
  for (const table of document.querySelectorAll(".md-typeset__scrollwrap:not([tabindex])")) table.tabIndex = 0;
};
new MutationObserver(adjust).observe(document.body, { childList: true, subtree: true });
adjust();
