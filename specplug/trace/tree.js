// The tree of a round for a row, drawn from left to right.

const BOX = { width: 116, height: 40, gapX: 26, gapY: 8, margin: 8 };
const SVG = "http://www.w3.org/2000/svg";

function drawn(name, attributes = {}, text = null) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== null) made.textContent = text;
  return made;
}

function placesOf(nodes, own) { // of every box: column by depth, line by the leaves below; a first child straight on
  const children = nodes.map(() => []);
  nodes.forEach((node, i) => { if (node.parent >= 0) children[node.parent].push(i); });
  const places = nodes.map(() => null);
  let line = 0;
  const walk = (i, column) => {
    let first = null;
    for (const child of children[i]) { const at = walk(child, column + 1); first ??= at; }
    if (own && own.parent === i) { own.column = column + 1; own.line = line; line += 1; first ??= own.line; }
    if (first === null) { first = line; line += 1; }
    places[i] = { column, line: first };
    return first;
  };
  walk(0, 0);
  return { places, lines: line, columns: 1 + Math.max(own ? own.column : 0, ...places.map((place) => place.column)) };
}

function treeOf(mine) {
  const hasOwn = mine.tokens.length > mine.accepted; // the target's own token was kept
  const own = hasOwn ? { parent: mine.path[mine.path.length - 1], token: mine.tokens[mine.tokens.length - 1] } : null;
  const { places, lines, columns } = placesOf(mine.nodes, own);
  const width = 2 * BOX.margin + columns * (BOX.width + BOX.gapX) - BOX.gapX;
  const height = 2 * BOX.margin + lines * (BOX.height + BOX.gapY) - BOX.gapY;
  const picture = drawn("svg", { id: "tree", width, height, viewBox: `0 0 ${width} ${height}`, role: "img", style: `min-width: ${Math.round(0.78 * width)}px`,
    "aria-label": `Tree of ${plural(mine.nodes.length, "node")}, ${mine.accepted} accepted` });
  mine.nodes.forEach((node, i) => {
    if (node.parent >= 0) picture.append(edge(places[node.parent], places[i], node.accepted ? "edge on-path" : "edge"));
  });
  if (own) picture.append(edge(places[own.parent], own, "edge to-own"));
  const picked = pickedNode(mine);
  mine.nodes.forEach((node, i) => picture.append(nodeBox(node, i, places[i], picked === i)));
  if (own) picture.append(ownBox(own, mine, picked === "own"));
  return element("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "Tree" }, picture);
}

function pickedNode(mine) { // the node of the token that was clicked
  if (chosen.token === null) return null;
  const place = chosen.token - firstOf(chosen.round);
  return place < mine.accepted ? mine.path[place + 1] ?? lastAccepted(mine) : "own";
}

function lastAccepted(mine) { return mine.nodes.findLastIndex((node) => node.accepted); } // a cut path ends before it

function leftOf(place) { return BOX.margin + place.column * (BOX.width + BOX.gapX); }

function topOf(place) { return BOX.margin + place.line * (BOX.height + BOX.gapY); }

function edge(from, to, kind) {
  const [x, y] = [leftOf(from) + BOX.width, topOf(from) + BOX.height / 2];
  const [u, v] = [leftOf(to), topOf(to) + BOX.height / 2];
  const middle = (x + u) / 2;
  return drawn("path", { class: kind, d: `M${x},${y} C${middle},${y} ${middle},${v} ${u},${v}` });
}

function boxOf(place, kind, token, line, words) {
  const made = drawn("g", { class: kind, transform: `translate(${leftOf(place)} ${topOf(place)})` });
  made.append(drawn("title", {}, words), drawn("rect", { width: BOX.width, height: BOX.height, rx: 5 }),
    drawn("text", { x: 8, y: 16 }, short(shown(token), 15)), drawn("text", { x: 8, y: 32, class: "odds" }, line));
  return made;
}

function nodeBox(node, i, place, picked) {
  const kind = ["node", i ? "" : "root", node.accepted ? "on-path" : "", picked ? "picked" : ""].filter(Boolean).join(" ");
  const line = i ? `d ${odds(node.draft)}  t ${odds(node.target)}` : "root";
  const words = i ? `${shown(node.token)} (${node.token}); draft ${node.draft ?? "not known"}, target ${node.target}`
    : `${shown(node.token)} (${node.token}): the newest token before the round`;
  return boxOf(place, kind, node.token, line, words);
}

function ownBox(own, mine, picked) {
  const origin = mine.nodes.length > 1 ? "bonus" : "plain";
  const words = `${shown(own.token)} (${own.token}): the target's own; its probability ${mine.bonus}`;
  return boxOf(own, `own ${origin}${picked ? " picked" : ""}`, own.token, `${origin}  t ${odds(mine.bonus)}`, words);
}
