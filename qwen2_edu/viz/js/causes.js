// Heads off, looks cut, another text's numbers put in: what do they cause?

/** Which heads are off, and how to switch some. live: whether there is a model to ask. */
function switching({ state, live, change }) {
  const isOff = ({ layer, head }) => state.off.includes(`${layer}.${head}`);

  /** Switch heads off; on again, if all of them are off. */
  function switchHeads(heads) {
    if (!live) return;
    const names = heads.map(({ layer, head }) => `${layer}.${head}`), others = state.off.filter((one) => !names.includes(one));
    change({ off: heads.every(isOff) ? others : [...others, ...names] });
  }
  return { isOff, switchHeads };
}

/** Which looks are cut: {layer, head, query, key} each, null = in all layers, or all heads of the layer. */
function cutting({ state, live, change, cell }) {
  const scopes = { head: ({ layer, head }) => ({ layer, head }), layer: ({ layer }) => ({ layer, head: null }), all: () => ({ layer: null, head: null }) };
  const look = () => ({ ...scopes[state.cutIn](state), query: state.query, key: state.key });
  const same = (a, b) => ["layer", "head", "query", "key"].every((part) => a[part] === b[part]);
  const isCut = () => state.cuts.some((one) => same(one, look()));

  /** Cut the chosen look; join it again, if it is cut. */
  function cutLook() {
    if (!live || cell(state, state.query, state.key)[1]) return; // what is hidden is not looked at
    change({ cuts: isCut() ? state.cuts.filter((one) => !same(one, look())) : [...state.cuts, look()] });
  }

  /** Cross out what is cut in one head. x, y: where a key and a query stand, in pixels; each: of a cell. */
  function crossOut(pen, { layer, head }, x, y, each, [paper, ink]) {
    pen.beginPath();
    for (const one of state.cuts) {
      if (![layer, null].includes(one.layer) || ![head, null].includes(one.head)) continue;
      const [across, down, arm] = [x(one.key) + each / 2, y(one.query) + each / 2, Math.max(4, each / 2 - 1)];
      for (const turn of [-arm, arm]) pen.moveTo(across - arm, down - turn), pen.lineTo(across + arm, down + turn);
    }
    for (const [colour, line] of [[paper, 4], [ink, 2]]) Object.assign(pen, { strokeStyle: colour, lineWidth: line }), pen.stroke();
  }
  return { isCut, cutLook, crossOut };
}

function makeCause({ source, data, state, live, change, name, cell, hides, keyHead, isOff, switchHeads, isCut, cutLook }) {
  const told = h("output", { class: "qx-told", hidden: true }); // in sight of the map: keys change it there
  const same = h("p", { class: "qx-told" }), say = (text) => (told.textContent = same.textContent = text);
  if (!live) return { draw: () => {}, element: null, told };
  const size = data.heads / data.groups;
  const some = (from, count) => Array.from({ length: count }, (_, i) => ({ layer: state.layer, head: from + i }));
  const sets = [["this head", () => some(state.head, 1)], ["its key group", () => some(keyHead(state.head) * size, size)],
    ["its layer", () => some(0, data.heads)]];
  const buttons = sets.map(([label, heads]) => button(label, `Switch off ${label}`, () => switchHeads(heads())));
  let taken = 0; // all was undone, or the text changed: what was to be put in before that, is not
  const all = button("undo all", "Undo all: heads on, nothing cut, nothing put in", () => (taken++, change({ off: [], cuts: [], patches: [] })));
  const to = select("What they say instead", [["zero", "nothing"], ["mean", "their mean"]], (value) => change({ to: value }));
  const cutIn = select("Where to cut", [["head", "this head"], ["layer", "all heads of its layer"], ["all", "all layers"]], (value) => change({ cutIn: value }));
  const knife = button("", null, cutLook);
  const box = h("textarea", { "aria-label": "Another text, of as many tokens", rows: 2, spellcheck: "false", dir: "auto",
    onkeydown: (event) => event.stopPropagation(), oninput: () => count(), onchange: () => state.patches.length && putIn() });
  box.value = data.text;
  const part = select("What of it", [["head", "what this head says"], ["mlp", "what its layer's MLP says"], ["stream", "the stream before its layer"]], () => {});
  const at = select("At which token", [["query", "query"], ["key", "key"]], () => {});
  const put = button("Put in", "Put in what flowed in the other text", () => {
    putIn([state.layer, part.value === "head" ? state.head : part.value, state[at.value]]);
  });
  const counted = h("span", { class: "qx-note" }), refused = h("p", { class: "qx-notice qx-why", role: "status" });

  /** Take from another text, if it fits, and put in one thing more; else say why not, and all stays as it was. */
  async function putIn(one) {
    const text = box.value, mine = taken, place = one?.[2];
    const why = one && hides(place, place) === 3 ? `token ${place} is padding` : await misfit(text);
    if (mine !== taken) return;
    refused.textContent = why && `Not put in: ${why}`;
    if (!why) change({ other: text, patches: [...state.patches.filter((other) => other.join() !== one?.join()), ...(one ? [one] : [])] });
  }

  /** Why another text does not fit, "" = it does; meanwhile tell its tokens. */
  async function misfit(text) {
    try {
      const [has, wanted] = await source.load(`count ${JSON.stringify(text)}`);
      if (text === box.value) counted.textContent = `${has} of ${wanted} tokens`;
      return has === wanted ? "" : `the other text has ${has} token${has === 1 ? "" : "s"} and this one ${wanted}: change words for words of as many tokens`;
    } catch (error) {
      if (text === box.value) counted.textContent = "";
      return error.message;
    }
  }

  function count() {
    taken++;
    refused.textContent = "";
    misfit(box.value);
  }
  const list = h("p", { class: "qx-note" }), kept = h("ul", { class: "qx-changes", "aria-label": "Cut and put in" });
  const [before, after] = ["as it is", "with these changes"].map((label) => {
    const bars = h("ol", { class: "qx-bars" });
    return { bars, element: h("div", {}, h("h3", {}, `The answer ${label}`), bars) };
  });
  const element = h("div", { class: "qx-cause" },
    h("div", { class: "qx-tools" }, "Switch off ", h("span", { role: "group", "aria-label": "Switch off" }, ...buttons),
      h("label", {}, "They say ", to, " instead")),
    h("div", { class: "qx-tools" }, h("label", {}, "Cut the chosen look in ", cutIn), knife),
    h("div", { class: "qx-tools" }, h("label", { class: "qx-other" }, "From another text, of as many tokens, ", box),
      h("label", {}, "take ", part), h("label", {}, "at the ", at), put, counted), refused,
    h("div", { class: "qx-tools" }, list, all), kept, same, h("div", { class: "qx-tops" }, before.element, after.element),
    h("p", { class: "qx-note" }, "Keys: o switches the head off that has the focus, x on the map cuts the chosen look. The change of the logit is what all of it "
      + "causes after the chosen query, with whatever later layers make of it; weights alone do not tell that. Choose another query: the changes stay."));
  /** What the heads that are off wrote themselves: less is lost where later parts make up for it. */
  const directly = ({ direct }) => (direct === null ? ""
    : ` Directly, by what ${state.off.length > 1 ? `they fetch, the ${state.off.length} heads that are off add` : "it fetches, the head that is off adds"} ${share(direct)}.`);
  let shown = null;

  let focusOn = null; // which of them has the focus once they are drawn anew: the next one, where one was undone

  /** A change that can be undone, as a button. */
  function keptOne(text, undo) {
    const one = button(`${text} ✕`, `Undo: ${text}`, () => {
      focusOn = [...kept.children].indexOf(one.parentNode);
      undo();
    });
    return h("li", {}, one);
  }

  function drawKept() {
    const without = (from, one) => change({ [from]: state[from].filter((other) => other !== one) });
    const where = ({ layer, head }) => (layer === null ? "in all layers" : head === null ? `in layer ${layer}` : `in ${layer}·${head}`);
    const what = (layer, part) => ({ mlp: `MLP ${layer}`, stream: `the stream before layer ${layer}` }[part] ?? `${layer}·${part}`);
    kept.replaceChildren(
      ...state.cuts.map((one) => keptOne(`cut ${name(one.query)} → ${name(one.key)} ${where(one)}`, () => without("cuts", one))),
      ...state.patches.map((one) => keptOne(`put in ${what(one[0], one[1])} at ${name(one[2])}`, () => without("patches", one))));
    if (focusOn !== null) (kept.children[Math.min(focusOn, kept.children.length - 1)]?.firstChild ?? all).focus();
    focusOn = null;
  }

  async function draw() {
    sets.forEach(([, heads], i) => buttons[i].setAttribute("aria-pressed", heads().every(isOff)));
    const { off, cuts, patches } = state, hidden = cell(state, state.query, state.key)[1];
    all.setAttribute("aria-disabled", !(off.length + cuts.length + patches.length));
    const named = off.slice(0, 12).map((one) => one.replace(".", "·")).join(", ");
    const more = off.length > 12 ? ` and ${off.length - 12} more` : "";
    list.textContent = off.length ? `Off, as layer·head: ${named}${more}.` : "No head is off.";
    cutIn.value = state.cutIn;
    knife.textContent = `${name(state.query)} → ${name(state.key)}`;
    knife.setAttribute("aria-label", `Cut the look of ${knife.textContent}`);
    knife.setAttribute("aria-pressed", isCut());
    knife.setAttribute("aria-disabled", Boolean(hidden));
    knife.title = hidden ? `hidden: ${REASONS[hidden]}` : "";
    ["query", "key"].forEach((one, i) => (at.options[i].textContent = `${one} ${name(state[one])}`));
    const now = JSON.stringify([cuts, patches]);
    if (kept.dataset.of !== now) kept.dataset.of = now, drawKept();
    const asked = `effect ${JSON.stringify({ query: state.query, token: state.token?.query === state.query ? state.token.id : null, to: state.to, off: off.map((one) => one.split(".").map(Number)),
      cuts: cuts.map(({ layer, head, query, key }) => [layer, head, query, key]), patches, other: patches.length ? state.other : null })}`;
    told.hidden = state.tab !== "causes" && !(off.length + cuts.length + patches.length);
    if (told.hidden || asked === shown) return;
    shown = asked;
    const excuse = setTimeout(() => say("The model reads the text with these changes …"), 300);
    let answer, fault;
    try {
      answer = await source.load(asked);
    } catch (error) {
      fault = error.message;
    }
    clearTimeout(excuse);
    if (shown !== asked) return; // others were switched meanwhile
    if (fault) {
      say(fault);
      before.bars.replaceChildren(), after.bars.replaceChildren();
      return;
    }
    const [was, is] = answer.chances.map(chance), sign = answer.delta < 0 ? "−" : "+";
    say(`After token ${name(state.query)}, “${answer.token}” ${answer.comes ? "comes next" : answer.id === answer.before[0].id ? "is likeliest" : "could come"}: its logit changes by `
      + `${sign}${Math.abs(answer.delta).toFixed(2)}, its probability from ${was} to ${is}.${directly(answer)}`);
    for (const [place, rows] of [[before, answer.before], [after, answer.after]]) {
      place.bars.replaceChildren(...rows.map(({ text, id, probability }) =>
        bar(`“${text}”`, probability, chance(probability), id === answer.id)));
    }
  }
  return { draw, element, told };
}
