// MathJax is 2 MB, so only pages with formulas load it. Nothing else is loaded: the menu would fetch more of it.
window.MathJax = {
  tex: { inlineMath: [["\\(", "\\)"]], displayMath: [["\\[", "\\]"]], tags: "none" },
  svg: { scale: 0.92 }, // its letters are large beside the text's
  options: { ignoreHtmlClass: ".*|", processHtmlClass: "arithmatex", enableMenu: false },
};

if (document.querySelector(".arithmatex")) {
  const script = document.createElement("script");
  script.src = new URL("mathjax.js", document.currentScript.src);
  document.head.append(script);
}
