// The picker's signs, drawn in a square of 16.

import { drawn } from "../page/dom.js"

const PATHS = {
  all: "M2 3.5h12M2 8h12M2 12.5h12",
  folder: "M1.5 4.5v8h13v-6.5h-7l-1.5-2h-4.5z",
  star: "M8 1.8l1.9 4 4.4.6-3.2 3 .8 4.4L8 11.7l-3.9 2.1.8-4.4-3.2-3 4.4-.6z",
  recent: "M8 1.8a6.2 6.2 0 1 0 0 12.4A6.2 6.2 0 1 0 8 1.8zM8 4.6V8l2.4 1.6",
  turn: "M6 4l4 4-4 4",
  broken: "M8 1.8L15 14H1zM8 6.2v4M8 11.8v.6",
  plus: "M8 3v10M3 8h10",
  done: "M3 8.5l3.2 3.2L13 4.8",
  list: "M2 3.5h12M2 8h12M2 12.5h12",
  grid: "M2 2h5v5H2zM9 2h5v5H9zM2 9h5v5H2zM9 9h5v5H9z",
  picture: "M1.5 2.5h13v11h-13zM2 11.5l4-4 3 3 2-2 3 3M10.8 5.6h.4",
  about: "M8 1.8a6.2 6.2 0 1 0 0 12.4A6.2 6.2 0 1 0 8 1.8zM8 7.2v4M8 4.8v.4",
  back: "M10 3L5 8l5 5",
  off: "M4 4l8 8M12 4l-8 8",
}

/** `filled`: as a star that is on. */
export function icon(name, filled = false) {
  return drawn("svg", { viewBox: "0 0 16 16", class: `loom-icon${filled ? " loom-filled" : ""}`, "aria-hidden": "true" },
    drawn("path", { d: PATHS[name] }))
}
