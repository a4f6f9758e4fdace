// Run in the page of `serve` by `cargo xtask page-check`: what was drawn, by its structure.
(() => {
  const problems = [];
  const {m, patches, entropy} = shown;
  const side = by('image').width, cell = side / m.grid;
  // From a copy: the page's own canvas is not made for being read.
  const pixels = id => {
    const copy = Object.assign(document.createElement('canvas'), {width: side, height: side});
    const on = copy.getContext('2d', {willReadFrequently: true});
    on.drawImage(by(id), 0, 0);
    return on.getImageData(0, 0, side, side).data;
  };
  const at = (data, x, y) => data.slice(4 * (Math.floor(y) * side + Math.floor(x)), 4 * (Math.floor(y) * side + Math.floor(x)) + 4).join();
  const corner = t => [t % m.grid * cell + 1, Math.floor(t / m.grid) * cell + 1];
  const centre = t => [(t % m.grid + .5) * cell, (Math.floor(t / m.grid) + .5) * cell];

  // Patches are all tokens, one behind the other.
  let next = 0;
  for (const [first, last] of patches) {
    if (first !== next || last < first) problems.push(`patch ${first}..${last} after token ${next - 1}`);
    next = last + 1;
  }
  if (next !== m.image_tokens) problems.push(`patches end at token ${next} of ${m.image_tokens}`);
  if (by('steps').textContent !== `${patches.length} of ${m.image_tokens}`) problems.push(`steps: ${by('steps').textContent}`);
  if (by('tokens').textContent !== `${m.image_tokens} of ${m.image_tokens}`) problems.push(`tokens: ${by('tokens').textContent}`);

  // Marks come and go with the key, on the boundaries and nowhere else.
  const press = key => document.dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true}));
  if (!by('edges').checked) problems.push('boundaries are not marked at first');
  const marked = ['image', 'entropy'].map(pixels);
  press('b');
  const plain = ['image', 'entropy'].map(pixels);
  press('b');
  for (const [i, id] of ['image', 'entropy'].entries()) {
    const firsts = patches.map(p => p[0]).filter(t => at(marked[i], ...corner(t)) === at(plain[i], ...corner(t)));
    if (firsts.length) problems.push(`${id}: no mark where the patches of tokens ${firsts} begin`);
    const inside = entropy.map((_, t) => t).filter(t => at(marked[i], ...centre(t)) !== at(plain[i], ...centre(t)));
    if (inside.length) problems.push(`${id}: marks in the middle of tokens ${inside}`);
  }
  // A token that goes on with its patch has no mark on the side of the one before it.
  const inner = patches.flatMap(([first, last]) => Array.from({length: last - first}, (_, i) => first + 1 + i)).filter(t => t % m.grid);
  const middle = t => [t % m.grid * cell + 1, (Math.floor(t / m.grid) + .5) * cell];
  const cut = inner.filter(t => at(marked[0], ...middle(t)) !== at(plain[0], ...middle(t)));
  if (cut.length) problems.push(`patches are cut before tokens ${cut}`);

  // The map: a colour for each entropy, the same for the same, and neutral where there is none.
  const colours = new Map();
  entropy.forEach((e, t) => {
    const colour = at(plain[1], ...centre(t));
    if (colours.has(e) && colours.get(e) !== colour) problems.push(`two colours for ${e} nats`);
    colours.set(e, colour);
  });
  if (new Set(colours.values()).size < 8) problems.push(`only ${new Set(colours.values()).size} colours in the map`);
  if (new Set(plain[0]).size < 8) problems.push('the image has hardly a colour');
  const history = [...document.querySelectorAll('#history button')];
  if (!history.length || !history[0].getAttribute('aria-label').includes(`${patches.length} steps`)) {
    problems.push('the image is not in the strip of earlier ones');
  }
  for (const canvas of document.querySelectorAll('canvas')) {
    if (!canvas.getAttribute('aria-label')) problems.push(`the canvas ${canvas.id} has no label`);
  }
  return problems;
})()
