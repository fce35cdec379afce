// Who adds to a logit? Direct attribution: the shares of heads, of MLPs, and of all else there is.

const most = (numbers) => Math.max(1e-9, ...numbers.map(Math.abs));
const share = (value) => `${Math.abs(value) < 0.005 ? "" : value < 0 ? "−" : "+"}${Math.abs(value).toFixed(2)}`;

/** The shares of what is asked about, from `shares.py`; null where nobody has asked. */
function sharing({ source, data, state, ready, name }) {
  const asksShares = () => source.holds("shares") && (state.tab === "shares" || state.sort === "shares");
  const token = () => (state.token?.query === state.query ? ` ${state.token.id}` : "");

  /** Load them; {why} if there are none. */
  async function loadShares() {
    const asked = `shares ${state.query}${token()}`;
    if (ready.shares?.asked === asked) return ready.shares;
    try {
      return { asked, ...(await source.load(asked) ?? { why: "This is padding: the model says nothing there." }) };
    } catch (error) {
      return { asked, why: error.message };
    }
  }
  const after = () => `After token ${name(state.query)}`;
  const comes = ({ id, comes, choices }) => (comes ? "comes next" : !choices || id === choices[0].id ? "is likeliest" : "could come");

  /** What the chosen head and the MLP of its layer add, in a sentence. */
  function toldShares() {
    const { why, token, logit, heads, mlps } = ready.shares ?? { why: "" };
    if (!heads) return why;
    return `${after()}, “${token}” ${comes(ready.shares)}, with a logit of ${logit.toFixed(2)}: head ${state.layer}·${state.head} adds `
      + `${share(heads[state.layer][state.head])} to it, MLP ${state.layer} ${share(mlps[state.layer])}.`;
  }

  /** As a measure of heads; above 0 or below it, so that two colours tell it. */
  function shareMeasure() {
    const { why, token, heads, mlps } = ready.shares ?? {};
    const shown = (all) => data.layers.map(({ index }) => all?.[index] ?? null);
    return { label: "direct logit attribution", why, signed: true,
      help: heads ? `what each head adds to the logit of “${token}” after token ${name(state.query)}, the final norm's scale held fixed` : "",
      scores: heads ? shown(heads) : data.layers.map(() => Array(data.heads).fill(null)), mlps: heads ? shown(mlps) : [] };
  }
  return { asksShares, loadShares, toldShares, shareMeasure, comes };
}

/** All that adds up to the logit: in one line, then by layer. */
function makeShares({ source, state, ready, change, name, comes, asksShares, toldShares }) {
  const told = h("output", { class: "qx-told", hidden: true }); // in sight of the map
  if (!source.holds("shares")) return { draw: () => {}, element: null, told };
  const choice = select("Logit of", [], (id) => change({ token: { query: state.query, id: Number(id) } }));
  const asks = h("div", { class: "qx-tools" }, h("label", {}, "What adds to the logit of ", choice)), which = h("span", {});
  asks.append(which);
  const sum = h("p", { class: "qx-sum" }), body = h("tbody", {});
  const table = h("table", { "aria-label": "Direct logit attribution by layer" },
    h("thead", {}, h("tr", {}, ...["layer", "its heads", "its MLP"].map((text) => h("th", { scope: "col" }, text)))), body);
  const note = h("p", { class: "qx-note" }, "Direct logit attribution: what each part itself wrote into the stream, read by the token's row of the vocabulary head. "
    + "The final norm's scale is held at what it was, so that the shares add up to the logit. What a part does through later ones is not counted"
    + `${source.whole ? "" : "; switching it off, under Causes, tells that too"}. Bars by √|share|. “Heads by direct logit attribution” shows each head.`);
  const layers = shadowed(h("div", { class: "qx-layers", tabindex: 0, role: "group", "aria-label": "Shares by layer" }, table), table);
  let opened = false;
  const element = h("div", { class: "qx-shares" }, asks, sum, layers, note);

  function draw() {
    told.hidden = !asksShares();
    told.textContent = toldShares();
    const { why, heads, mlps, parts, logit, token, id, choices = [] } = ready.shares ?? {};
    const options = choices.map((one) => [one.id, `“${one.text}”, probability ${chance(one.probability)}`]);
    if (choice.dataset.of !== `${options}`) {
      choice.replaceChildren(...options.map(([value, text]) => h("option", { value }, text)));
      choice.dataset.of = `${options}`;
    }
    choice.value = id;
    choice.parentNode.hidden = !choices.length;
    which.textContent = !heads ? "" : choices.length ? `after token ${name(state.query)}, which ${comes(ready.shares)}`
      : `What adds to the logit of “${token}” after token ${name(state.query)}, which ${comes(ready.shares)}`;
    table.hidden = note.hidden = !heads;
    sum.textContent = why ?? "";
    if (!heads) return;
    const seen = parts.filter(([part, value]) => part !== "rounding" || Math.abs(value) >= 0.005);
    sum.replaceChildren(...seen.flatMap(([part, value], i) => [i ? " " : "", h("span", {}, `${part} `, h("b", {}, share(value)))]),
      h("span", {}, " = ", h("b", {}, logit.toFixed(2)), " the logit"));
    const sums = heads.map((layer) => layer.reduce((all, one) => all + one, 0)), scale = most([...sums, ...mlps]);
    const cell = (value) => h("td", {}, h("i", { style: `--part: ${Math.sqrt(Math.abs(value) / scale)}`, class: value < 0 ? "qx-less" : "" }), h("b", {}, share(value)));
    body.replaceChildren(...heads.map((_, i) => h("tr", { "aria-current": i === state.layer && "true" },
      h("th", { scope: "row" }, `${i}`), cell(sums[i]), cell(mlps[i]))));
    if (!opened && layers.clientHeight) opened = Boolean(layers.scrollTop = layers.scrollHeight); // at first the last layers
  }
  return { draw, element, told };
}
