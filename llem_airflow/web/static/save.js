// A plot as a file: the SVG of the page with its styles written out, or the same drawn on a canvas. All in the browser.

const KEPT = ["fill", "fill-opacity", "stroke", "stroke-width", "stroke-opacity", "stroke-dasharray", "opacity", "text-anchor", "font-family", "font-size", "font-weight"];
const LARGER = 2; // pixels of a PNG for one of the page
const MARGIN = 8;

/** Saves the pictures in an element, one below the other, as `svg` or `png`. */
export async function savePicture(box, name, form) {
  const { text, width, height } = standalone(box, name);
  const drawn = new Blob([text], { type: "image/svg+xml" });
  const blob = form === "png" ? await painted(drawn, width, height) : drawn;
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = `${name.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 80) || "plot"}.${form}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/** An SVG that needs no style sheet: colours of the theme and fonts are those that the page shows. */
function standalone(box, name) {
  const pictures = [...box.querySelectorAll("svg")];
  const size = (picture, side) => Number(picture.getAttribute(side)) || 0;
  const width = Math.max(...pictures.map((picture) => size(picture, "width"))) + 2 * MARGIN;
  const made = (tag) => document.createElementNS(pictures[0].namespaceURI, tag);
  const root = made("svg");
  const title = root.appendChild(made("title"));
  title.textContent = name;
  const paper = root.appendChild(made("rect"));
  let height = MARGIN;
  for (const picture of pictures) {
    const copy = styled(picture);
    copy.setAttribute("x", MARGIN);
    copy.setAttribute("y", height);
    root.append(copy);
    height += size(picture, "height");
  }
  height += MARGIN;
  const whole = { width, height };
  for (const [key, value] of Object.entries({ ...whole, fill: getComputedStyle(box).backgroundColor })) paper.setAttribute(key, value);
  for (const [key, value] of Object.entries({ ...whole, viewBox: `0 0 ${width} ${height}` })) root.setAttribute(key, value);
  return { text: new XMLSerializer().serializeToString(root), width, height };
}

function styled(original) {
  const copy = original.cloneNode(true);
  const copies = [copy, ...copy.querySelectorAll("*")];
  for (const [place, from] of [original, ...original.querySelectorAll("*")].entries()) {
    const to = copies[place];
    const shown = getComputedStyle(from);
    to.removeAttribute("style");
    to.removeAttribute("class");
    for (const key of KEPT) to.setAttribute(key, shown.getPropertyValue(key));
  }
  return copy;
}

async function painted(drawn, width, height) {
  const url = URL.createObjectURL(drawn);
  try {
    const image = new Image();
    image.src = url;
    await image.decode();
    const canvas = document.createElement("canvas");
    canvas.width = width * LARGER;
    canvas.height = height * LARGER;
    canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
    return await new Promise((done) => canvas.toBlob(done, "image/png"));
  } finally {
    URL.revokeObjectURL(url);
  }
}
