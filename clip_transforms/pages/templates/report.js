"use strict";
const element = (id) => document.getElementById(id);

// The slider: what a threshold keeps, and the command for it.
if (element("threshold")) {
  const slider = element("threshold");
  const { low, rows, kept } = JSON.parse(element("kept-data").textContent);
  const left = Number(slider.dataset.left);
  const width = Number(slider.dataset.right) - left;
  const last = element("filter").querySelector("span:last-child"); // the word with the threshold
  const clip = document.querySelector("#kept rect");
  const show = () => {
    const at = Number(slider.value);
    const threshold = (at / 1000).toFixed(3);
    const x = (1000 * (at - left)) / width;
    clip.setAttribute("x", x);
    clip.setAttribute("width", 1000 - x);
    element("at").textContent = threshold;
    element("keeps").textContent = kept[at - low].toLocaleString("en");
    element("share").textContent = ((100 * kept[at - low]) / rows).toFixed(1) + "\u00a0%";
    last.textContent = last.textContent.replace(/-?[\d.]+/, threshold);
    slider.setAttribute("aria-valuetext", threshold);
  };
  slider.addEventListener("input", show);
  show();
}

// The map: the picture of the nearest point that has one.
if (element("map-data")) {
  const { columns, rows, places, captions, labels } = JSON.parse(element("map-data").textContent);
  const plane = element("plane");
  const size = [Number(plane.dataset.width), Number(plane.dataset.height)];
  const point = element("point");
  const picture = element("point-picture");
  let chosen = -1;
  const choose = (index) => {
    chosen = index;
    const [x, y] = places[index];
    element("here").setAttribute("cx", x);
    element("here").setAttribute("cy", y);
    const across = Math.min(columns, places.length);
    picture.style.backgroundSize = 100 * across + "% " + 100 * rows + "%";
    const part = (place, count) => (count > 1 ? (100 * place) / (count - 1) : 0);
    picture.style.backgroundPosition =
      part(index % columns, across) + "% " + part(Math.floor(index / columns), rows) + "%";
    element("point-caption").textContent = captions[index];
    element("point-labels").textContent = labels[index];
    point.hidden = false;
    // Beside the point, on the side where there is more room; the card takes no room of its own.
    const [right, below] = [x > size[0] / 2, y > size[1] / 2];
    point.style.left = right ? "auto" : "calc(" + (100 * x) / size[0] + "% + 1rem)";
    point.style.right = right ? "calc(" + (100 * (size[0] - x)) / size[0] + "% + 1rem)" : "auto";
    point.style.top = below ? "auto" : (100 * y) / size[1] + "%";
    point.style.bottom = below ? (100 * (size[1] - y)) / size[1] + "%" : "auto";
  };
  const nearest = (x, y, of) => {
    let best = -1;
    let least = Infinity;
    places.forEach(([a, b], index) => {
      const distance = (a - x) ** 2 + (b - y) ** 2;
      if (of(a, b, index) && distance < least) {
        least = distance;
        best = index;
      }
    });
    return best;
  };
  const follow = (event) => {
    const box = plane.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * size[0];
    const y = ((event.clientY - box.top) / box.height) * size[1];
    choose(nearest(x, y, () => true));
  };
  plane.addEventListener("pointermove", follow);
  plane.addEventListener("pointerdown", follow);
  const ways = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  plane.addEventListener("keydown", (event) => {
    if (!(event.key in ways)) return;
    event.preventDefault();
    const [right, down] = ways[event.key];
    const [x, y] = chosen < 0 ? [size[0] / 2, size[1] / 2] : places[chosen];
    // Within a right angle around the arrow; points in the same place are passed one by one.
    const ahead = (a, b, index) => {
      const [forth, aside] = right ? [(a - x) * right, b - y] : [(b - y) * down, a - x];
      return index !== chosen && forth > 0 && Math.abs(aside) <= forth;
    };
    const next = nearest(x, y, ahead);
    if (next >= 0) choose(next);
    else if (chosen < 0) choose(nearest(x, y, () => true));
  });
  plane.tabIndex = 0;
  plane.setAttribute("role", "group");
  plane.setAttribute("aria-label", "Map; the arrow keys go from picture to picture");
}
