// The theme wraps each copy button in a <nav>; without a name, screen readers list dozens of equal landmarks.
const dropLandmarks = () =>
  document.querySelectorAll("nav.md-code__nav:not([role])").forEach((nav) => nav.setAttribute("role", "presentation"));
new MutationObserver(dropLandmarks).observe(document.body, { childList: true, subtree: true });
dropLandmarks();
