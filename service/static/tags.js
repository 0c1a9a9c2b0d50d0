// The numbers at the corners of boxes, side by side where they would hide each other. Knows no detection.

const GAP = 1;
const MOST = 100; // tags are kept apart; those after them stay at their corners
const LINES = [0, 1, -1, 2, -2, 3, -3]; // a tag goes no further up or down than so many of its heights
const DEAR = 3; // a way to the left, up or down counts as so much of one to the right
const $ = (id) => document.getElementById(id);
let shown = [];

/** Show tags of {element, x, y}: x and y are shares of the stage. The first have the first choice of place. */
export function showTags(tags) {
  shown = tags;
  $('tags').replaceChildren(...tags.map(({ element }) => element).reverse()); // if it must be, the first hides others
  placeTags();
}

/** Place what is shown, also when the stage has another size. */
export function placeTags() {
  const { clientWidth: width, clientHeight: height } = $('tags');
  const wanted = shown.map(({ element, x, y }) => ({
    x: Math.round(x * width),
    y: Math.round(y * height),
    width: element.offsetWidth + GAP,
    height: element.offsetHeight + GAP,
  }));
  spread(wanted, { width, height }).forEach(({ x, y }, index) => {
    Object.assign(shown[index].element.style, { left: `${x}px`, top: `${y}px` });
  });
}

/** Rectangles of whole pixels moved onto the stage and apart, each as little as it may be after those before it. */
function spread(wanted, stage) {
  const placed = [];
  wanted.forEach((each) => placed.push(settle(each, placed.length < MOST ? placed : [], stage)));
  return placed;
}

function settle(wanted, placed, stage) {
  const [right, bottom] = [stage.width - wanted.width, stage.height - wanted.height];
  const own = { ...wanted, x: Math.max(0, Math.min(wanted.x, right)), y: Math.max(0, Math.min(wanted.y, bottom)) };
  const met = placed.filter((each) => meet(own, each));
  if (!met.length) return own;
  const heights = [...LINES.map((line) => own.y + line * own.height), ...met.flatMap(({ y, height }) => [y + height, y - own.height])];
  const lines = heights.filter((y) => y >= 0 && y <= bottom).map((y) => ({ ...own, y }));
  const free = lines.flatMap((line) => [1, -1].map((way) => slide(line, way, placed))).filter(({ x }) => x >= 0 && x <= right);
  const far = ({ x, y }) => Math.max(x - own.x, DEAR * (own.x - x)) + DEAR * Math.abs(y - own.y);
  return free.sort((one, other) => far(one) - far(other))[0] ?? own; // too crowded: over others
}

function slide(from, way, placed) {
  const moved = { ...from };
  const next = () => placed.find((each) => meet(moved, each));
  for (let other = next(); other; other = next()) moved.x = way > 0 ? other.x + other.width : other.x - moved.width;
  return moved;
}

function meet(one, other) {
  const along = one.x < other.x + other.width && other.x < one.x + one.width;
  return along && one.y < other.y + other.height && other.y < one.y + one.height;
}
