// The numbers that are drawn, as the chosen view weighs them.

/** What is told of tokens, layers and cells; of `layers` and `ready` as far as they have been loaded. */
function reading({ source, data, T, state, layers, ready, change }) {
  const name = (i) => `${i} “${data.tokens[i].text}”`;
  const chosenToken = () => (state.direction === "query" ? state.query : state.key);
  const other = () => (state.direction === "query" ? "key" : "query"); // the other end of its look

  /** Choose a token; what it looked at most is then chosen anew. */
  function chooseToken(token, more = {}) {
    const asked = state.sort === "cell" && state.key <= token; // the question stays, where it can
    change({ ...(state.direction === "query" && !asked ? { key: null } : {}), [state.direction]: token, ...more });
  }
  const aboutLayer = (index) => data.layers.find((layer) => layer.index === index);
  const keyHead = (head) => Math.floor(head / (data.heads / data.groups));

  /** Weight of a cell: how much does query q look at key k, in one head? */
  const weight = (at, q, k) => factor(at, k) * weightOf(layers.get(at.layer)[(at.head * T + q) * T + k]) / total(at, q);

  /** The same in what is drawn, which may be the mean of several heads; and if hidden, why. */
  const cell = (at, q, k) => {
    const heads = members(at);
    return [heads.reduce((sum, one) => sum + weight(one, q, k), 0) / heads.length, reasons(at)[q * T + k]];
  };
  const members = ({ layer, head, kept }) => {
    const marked = state.over === "marked";
    if (marked && state.marked.length && !kept) return state.marked;
    if (marked || state.over === "head") return [{ layer, head }];
    const size = state.over === "group" ? data.heads / data.groups : data.heads;
    return Array.from({ length: size }, (_, i) => ({ layer, head: Math.floor(head / size) * size + i }));
  };

  const loaded = (at) => [at, ...members(at)].every(({ layer }) => layers.has(layer));

  /** Why each cell is hidden, T*T; marked heads of several layers show what one of them can see. */
  const masks = new Map();
  const reasons = (at) => {
    const own = (layer) => layers.get(layer).subarray(data.heads * T * T);
    const all = [...new Set(members(at).map(({ layer }) => layer))], name = all.join();
    if (all.length === 1) return own(all[0]);
    if (!masks.has(name)) masks.set(name, own(all[0]).map((why, i) => (all.some((layer) => !own(layer)[i]) ? 0 : why)));
    return masks.get(name);
  };

  /** What the view multiplies the weights on a key with, before each row is shared out anew. */
  const factor = (at, k) => {
    if (state.view === "raw") return 1;
    if (state.view === "rest") return k === data.first ? 0 : 1;
    return ready.norms[(data.layers.indexOf(aboutLayer(at.layer)) * data.heads + at.head) * T + k];
  };
  const totals = new Map(); // of each row of the heads looked at
  const total = (at, q) => {
    if (state.view === "raw") return 1;
    const name = [state.view, at.layer, at.head].join();
    if (!totals.has(name)) totals.set(name, new Float64Array(T));
    const sums = totals.get(name), start = (at.head * T + q) * T;
    if (!sums[q]) {
      const bytes = layers.get(at.layer);
      for (let k = 0; k < T; k++) sums[q] += factor(at, k) * weightOf(bytes[start + k]);
    }
    return sums[q] || 1;
  };

  const scoresOf = (measure) => (state.view === "raw" || !measure.views ? measure.scores : measure.views[state.view]);

  /** How much does each head look from the chosen query to the chosen key? (layers, heads) */
  async function looking() {
    const { query, key } = state;
    if (!source.whole) return source.load(`cell ${query} ${key} ${state.view}`);
    for (const { index } of data.layers) if (!layers.has(index)) layers.set(index, await source.load(`layer ${index}`));
    return data.layers.map(({ index: layer }) =>
      Array.from({ length: data.heads }, (_, head) => weight({ layer, head }, query, key)));
  }

  /** Why does the chosen layer hide a key from a query? 0 = it does not, undefined = it is not yet here. */
  const hides = (query, key) => layers.get(state.layer)?.[(data.heads * T + query) * T + key];

  /** The measure that heads are sorted by, or nothing. */
  const measure = () => {
    if (state.sort !== "cell") return data.behaviours.find((b) => b.name === state.sort);
    const { query, key } = state, ends = `from query ${name(query)} to key ${name(key)}`, why = hides(query, key);
    const shown = { label: "this look", help: `weight ${ends}; for another pair click a bar, or a cell of the map`, scores: ready.looks };
    if (![1, 3].includes(why)) return shown; // outside the window: not in each layer
    return { ...shown, help: "", why: `No head looks ${ends}: hidden, ${REASONS[why]}.`, scores: data.layers.map(() => Array(data.heads).fill(null)) };
  };

  /** Another head or query was chosen: the key begins anew, but where it is what was chosen. */
  const fresh = () => (state.direction === "query" && state.sort !== "cell" ? { key: null } : {});

  /** The key that the chosen query looks at most. */
  const strongest = (at) => {
    const row = Array.from({ length: T }, (_, k) => cell(at, at.query, k)[0]);
    return row.indexOf(Math.max(...row));
  };

  function sentence(at) {
    const notes = [at.query, at.key].map((i) => data.tokens[i].note).filter(Boolean);
    const aside = notes.length ? ` (${[...new Set(notes)].join("; ")})` : "";
    return `Query ${name(at.query)}, key ${name(at.key)}: ${told(at)}${aside}`;
  }

  function told(at) {
    const [weight, why] = cell(at, at.query, at.key);
    const count = members(at).length, mean = count > 1 ? `mean of ${count} heads, ` : "";
    const what = mean + { raw: "weight", rest: "share without the first token", value: "share by value" }[state.view];
    const [less, also] = !at.kept && ready.minus ? ready.minus.cell(at.query, at.key) : [];
    if (why && (less === undefined || also)) return `hidden: ${REASONS[why]}`;
    return `${what} ${digits(weight)}` + (less === undefined ? "" : ` minus ${digits(less)}, difference ${signed(weight - less)}`);
  }

  return { name, chosenToken, chooseToken, other, aboutLayer, keyHead, weight, cell, members, loaded, reasons, scoresOf, looking, hides, measure, fresh, strongest, sentence, told };
}
