// Run in the page by `cargo xtask report-check`: a list of what is wrong with it.
(() => {
  const problems = [];
  const root = document.documentElement;
  if (root.scrollWidth > root.clientWidth) {
    problems.push(`the page scrolls sideways: ${root.scrollWidth} px in ${root.clientWidth}`);
  }
  let level = 0;
  for (const h of document.querySelectorAll("h1,h2,h3,h4")) {
    const own = Number(h.tagName[1]);
    if (own > level + 1) problems.push(`heading ${h.tagName} "${h.textContent}" after level ${level}`);
    level = own;
  }
  for (const img of document.images) {
    if (!img.alt) problems.push("an image without alt text");
    if (img.src.startsWith("data:") && img.naturalWidth === 0) problems.push(`a picture that is none: ${img.alt}`);
  }
  for (const th of document.querySelectorAll("th")) {
    if (!th.scope) problems.push(`table heading "${th.textContent}" without scope`);
  }
  for (const input of document.querySelectorAll("input")) {
    if (!input.labels || input.labels.length === 0) problems.push(`input ${input.id} without label`);
  }
  for (const region of document.querySelectorAll(".scroll")) {
    if (region.tabIndex !== 0 || !region.getAttribute("aria-label")) problems.push("a scrolling region without label or focus");
  }
  const ids = [...document.querySelectorAll("[id]")].map((e) => e.id);
  for (const id of ids.filter((id, i) => ids.indexOf(id) !== i)) problems.push(`id ${id} twice`);

  // WCAG 2 contrast of every text with the colour behind it.
  const rgba = (text) => {
    const v = (text.match(/[\d.]+/g) || []).map(Number);
    return v.length === 3 ? [...v, 1] : v;
  };
  const over = (top, below) => top.slice(0, 3).map((c, i) => c * top[3] + below[i] * (1 - top[3])).concat(1);
  const ground = (element) => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) {
      const colour = rgba(getComputedStyle(e).backgroundColor);
      layers.push(colour);
      if (colour[3] === 1) break;
    }
    const dark = matchMedia("(prefers-color-scheme: dark)").matches;
    const base = dark ? [18, 18, 18, 1] : [255, 255, 255, 1];
    return layers.reverse().reduce((below, top) => over(top, below), base);
  };
  const luminance = (c) => {
    const [r, g, b] = c.slice(0, 3).map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const seen = new Set();
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || seen.has(element) || !element.checkVisibility()) continue;
    seen.add(element);
    const style = getComputedStyle(element);
    const below = ground(element);
    const [a, b] = [luminance(over(rgba(style.color), below)), luminance(below)];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    const large = parseFloat(style.fontSize) >= 24;
    if (ratio < (large ? 3 : 4.5)) {
      problems.push(`contrast ${ratio.toFixed(2)} of "${element.textContent.trim().slice(0, 40)}" (${style.color})`);
    }
  }
  return problems;
})();
