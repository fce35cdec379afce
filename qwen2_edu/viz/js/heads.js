// All heads: in a grid, or ranked by a measure, which for many heads is a picture too.

const MOST_RANKED = 100; // heads of a ranking: more are a picture, and no list

function makeOverview(shared) {
  const { source, data, state, ready, many, change, fresh, scoresOf, keyHead, switchHeads, markHead, pinHead, shareMeasure } = shared;
  const act = (key, head) => { // what a letter does on a head, in the list and in the picture
    const made = { o: (one) => switchHeads([one]), m: markHead, p: pinHead }[key];
    made?.(head);
    return made;
  };
  const measure = () => (state.sort === "shares" ? shareMeasure() : shared.measure()), heat = makeHeat(shared, act);
  const list = h("div", { role: "listbox", "aria-label": "Heads" });
  const columns = h("div", { class: "qx-layer", "aria-hidden": true }); // each head says its key head
  const sort = select("Heads by", [["", "layer"], ["cell", "this query → this key"], ...(source.holds("shares") ? [["shares", "direct logit attribution"]] : []), ...data.behaviours.map((b) => [b.name, b.label])],
    (value) => change({ sort: value, keep: null }));
  sort.value = state.sort;
  const views = select("Weights", data.views.map((view) => [view.name, view.label]), (view) => change({ view, keep: null }));
  const order = select("Order", [["high", "high first"], ["low", "low first"]],
    (value) => change({ highFirst: value === "high", keep: null }));
  const keep = slider("Keep heads that score", 1000, (value) => change({ keep: value }));
  const kept = h("output", {});
  const help = h("p", { class: "qx-note" });
  const filter = h("span", { class: "qx-filter" }, order, h("label", {}, "Keep ", keep), kept);
  const headOf = ({ dataset }) => ({ layer: Number(dataset.layer), head: Number(dataset.head) });
  let options = []; // of the list, in their order: to look for thousands takes time
  const beyond = (option, step) => // in the grid: the same head, one layer on
    (state.sort ? undefined : options[options.indexOf(option) + step * data.heads] ?? null);
  walkable(list, (option) => change({ ...headOf(option), ...fresh() }), false, beyond, () => options);
  list.addEventListener("keydown", (event) => {
    const option = event.target.closest("[role=option]");
    if (option && act(event.key, headOf(option))) event.stopPropagation();
  });
  let drawn = null, sought = null, stop = null; // the chosen element; the one that the tab key leads to
  const urls = []; // of pictures, to be given back at the end
  const flagged = new Map(); // class -> the elements that have it
  let made = new Map(), madeAs = null; // "layer.head" -> its element, for one view in one set of colours
  // A picture is drawn when it first comes into sight: of a head in the ranking, of a row in the grid.
  // To watch thousands of elements, or to have a canvas in each, makes every frame slow.
  const seen = new IntersectionObserver((changes) => {
    for (const { target } of changes.filter(({ isIntersecting }) => isIntersecting)) {
      fill(target, target.dataset.head ? [target] : optionsOf(target));
      seen.unobserve(target);
    }
  }, { rootMargin: "100px" });

  /** Draw some heads of a layer into one picture, of which each shows its part. */
  function fill(target, some) {
    if (some.length === 1 && target.style.getPropertyValue("--picture")) return; // it was in an earlier ranking
    const side = data.thumbnail, wide = some.length * side, colours = new Uint32Array(wide * side);
    const view = data.views.findIndex(({ name }) => name === state.view) * data.layers.length;
    some.forEach((option, place) => {
      const { layer, head } = headOf(option), at = data.layers.findIndex(({ index }) => index === layer);
      const start = ((view + at) * data.heads + head) * side * side;
      for (let y = 0; y < side; y++) for (let x = 0; x <= y; x++) { // above are keys in the future
        colours[y * wide + place * side + x] = ready.palette.words[ready.thumbnails[start + y * side + x]];
      }
      if (option !== target) option.style.removeProperty("--picture");
      option.style.setProperty("--place", `${(100 * place) / Math.max(1, some.length - 1)}%`);
      option.style.setProperty("--size", `${100 * some.length}% 100%`);
    });
    pixels(wide, colours, side).toBlob((blob) => { // an address of some letters: it is repeated in each head
      urls.push(URL.createObjectURL(blob));
      target.style.setProperty("--picture", `url(${urls.at(-1)})`);
    });
  }

  function thumbnail(layer, head, caption = "") {
    const name = `${layer.index}.${head}`;
    if (!made.has(name)) made.set(name, option(layer, head));
    const [, small] = made.get(name).children;
    if (small.textContent !== caption) small.textContent = caption;
    return made.get(name);
  }

  function option(layer, head) {
    const at = data.layers.indexOf(layer);
    const scores = data.behaviours.filter((b) => scoresOf(b)[at][head] !== null)
      .map((b) => `${b.label} ${scoresOf(b)[at][head].toFixed(2)}`).join(", ");
    const label = `Layer ${layer.index} head ${head}, key head ${keyHead(head)}, ${layer.badge}. ${scores}`;
    return h("div", { role: "option", "aria-selected": "false", tabindex: -1, "aria-label": label, title: label, "data-layer": layer.index, "data-head": head },
      h("i", {}), h("small", {}));
  }

  function grid() {
    const size = data.heads / data.groups;
    const groups = (fill) => Array.from({ length: data.groups }, (_, g) =>
      h("div", { class: "qx-group", role: "presentation" }, ...fill(g)));
    const brackets = groups((g) => [
      h("div", { class: "qx-bracket", style: `--size: ${size}` }, h("span", {}, size > 1 ? `key head ${g}` : `k${g}`),
        h("div", { class: "qx-numbers" }, ...Array.from({ length: size }, (_, i) => h("small", {}, `${g * size + i}`))))]);
    const alike = data.layers.every(({ badge }) => badge === data.layers[0].badge); // said once, by the heading
    const rows = data.layers.flatMap((layer) => {
      const thumbs = groups((g) => Array.from({ length: size }, (_, i) => thumbnail(layer, g * size + i)));
      const badge = h("span", { class: `qx-badge ${layer.sliding ? "qx-sliding" : ""}`, title: layer.why }, layer.badge);
      const label = `Layer ${layer.index}: ${layer.badge}, as ${layer.why}`;
      const row = h("div", { class: "qx-layer", role: "group", "aria-label": label },
        h("span", { class: "qx-name", role: "presentation" }, h("b", {}, `${layer.index}`), ...(alike ? [] : [badge])), ...thumbs);
      const heading = h("p", { class: "qx-heading", role: "presentation" }, layer.heading ?? "");
      return layer.heading ? [heading, row] : [row];
    });
    columns.replaceChildren(h("span", { class: "qx-name" }, "layer"), ...brackets);
    return rows;
  }

  function ranking(behaviour) {
    const sign = state.highFirst ? -1 : 1;
    const all = data.layers
      .flatMap((layer, at) => scoresOf(behaviour)[at].map((score, head) => ({ layer, head, score })))
      .filter(({ score }) => score !== null).sort((a, b) => sign * (a.score - b.score));
    if (!all.length) {
      const hides = behaviour.scores.flat().some((score) => score !== null), { label } = data.views.find(({ name }) => name === state.view);
      const why = behaviour.why ?? `No head has a score: ${behaviour.label} cannot be measured ${hides ? `with the weights “${label}”` : "on this text"}.`;
      return [h("p", { class: "qx-note" }, why)];
    }
    const said = behaviour.signed ? share : (score) => score.toFixed(2);
    const [first, last] = [all[0].score, all.at(-1).score]; // best and worst in this order
    keep.value = state.keep ?? 0;
    const limit = last + ((first - last) * keep.value) / 1000;
    const passing = all.filter(({ score }) => sign * (score - limit) <= 1e-9);
    kept.textContent = `${state.highFirst ? "≥" : "≤"} ${said(limit)}: ${passing.length} of ${all.length}`;
    keep.setAttribute("aria-valuetext", kept.textContent);
    return [h("div", { class: "qx-ranking", role: "presentation" },
      ...passing.slice(0, MOST_RANKED).map(({ layer, head, score }) =>
        thumbnail(layer, head, `${layer.index}·${head}\n${said(score)}`)))];
  }

  function draw() {
    const behaviour = measure();
    const looked = state.sort === "cell" ? [state.query, state.key] : state.sort === "shares" ? [ready.shares?.asked] : [];
    const now = [state.sort, state.highFirst, state.keep, state.colours, state.view, ...looked].join();
    sort.value = state.sort;
    order.value = state.highFirst ? "high" : "low";
    views.value = state.view;
    if (now !== drawn) {
      const as = [state.colours, state.view].join();
      if (as !== madeAs) made = new Map(), madeAs = as;
      list.replaceChildren(...(behaviour ? ranking(behaviour) : grid()));
      options = optionsOf(list);
      seen.disconnect();
      for (const one of behaviour ? options : list.querySelectorAll(".qx-layer")) seen.observe(one);
      filter.hidden = !behaviour || !options.length;
      columns.hidden = Boolean(behaviour);
      const captions = filter.hidden ? "" : ` Under each head: layer·head, score${many ? `; the first ${MOST_RANKED}` : ""}.`;
      const about = behaviour ? behaviour.help && `${behaviour.help[0].toUpperCase()}${behaviour.help.slice(1)}.${captions}`
        : "A bracket joins the query heads on one key head.";
      help.textContent = [data.views.find(({ name }) => name === state.view).help, about].filter(Boolean).join(" ");
      drawn = now;
    }
    heat.element.hidden = filter.hidden || !many && !behaviour.signed; // shares are a picture of MLPs too
    if (!heat.element.hidden) heat.draw(behaviour, scoresOf(behaviour));
    flag("qx-pinned", state.pinned);
    flag("qx-marked", state.marked);
    flag("qx-off", state.off.map(headNamed));
    choose(made.get(nameOf(state)));
  }

  /** These heads have a class, and no others. Of thousands of elements those are touched that change. */
  function flag(name, some) {
    const now = new Set(some.map((one) => made.get(nameOf(one))).filter(Boolean));
    for (const option of flagged.get(name) ?? []) if (!now.has(option)) option.classList.remove(name);
    for (const option of now) option.classList.add(name);
    flagged.set(name, now);
  }

  /** One head becomes the chosen one, and the one that the tab key leads to; else the first. */
  function choose(option) {
    const one = option?.parentNode && list.contains(option) ? option : null, first = one ?? options[0];
    if (sought !== one) sought?.setAttribute("aria-selected", "false"), one?.setAttribute("aria-selected", true);
    if (stop !== first) stop?.setAttribute("tabindex", -1), first?.setAttribute("tabindex", 0);
    if (one && one !== sought) bring(one);
    [sought, stop] = [one, first];
  }

  /** Layers of the heads where an arrow key would lead, and of the layers before and after. The chosen
   * head may not be in the list: then the keys begin where the tab key leads. */
  function beside() {
    const at = options.indexOf(stop);
    const near = at < 0 ? [] : options.slice(Math.max(0, at - 1), at + 3).map((option) => headOf(option).layer);
    const place = data.layers.findIndex(({ index }) => index === state.layer);
    const next = [data.layers[place + 1], data.layers[place - 1]].filter(Boolean).map(({ index }) => index);
    return new Set([...near, ...next]);
  }

  /** Scroll the box, and not the page, to a head. */
  function bring(option) {
    const box = heads.getBoundingClientRect(), at = option.getBoundingClientRect();
    const top = box.top + columns.offsetHeight, left = box.left + 40; // what stays in place over the scrolled heads
    if (at.top < top || at.bottom > box.bottom) heads.scrollTop += at.top - (top + box.bottom) / 2;
    if (at.left < left || at.right > box.right) heads.scrollLeft += at.left - (left + box.right) / 2;
  }
  const controls = h("div", { class: "qx-tools" }, h("label", {}, "Heads by ", sort), h("label", {}, "Weights ", views), filter);
  const heads = shadowed(h("div", { class: "qx-heads", style: `--heads: ${data.heads}; --groups: ${data.groups}` }, columns, list), list);
  return { draw, beside, paint: () => heat.element.hidden || heat.redraw(), close: () => (seen.disconnect(), urls.forEach((url) => URL.revokeObjectURL(url))), element: h("div", { class: "qx-overview" }, controls, help, heat.element, heads) };
}
