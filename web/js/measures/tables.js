// Figures as tables: heat maps whose cells can be reached and read, bars with their numbers, plain columns.

import { element } from "../page/dom.js"
import { spoken, word } from "../page/words.js"

const QUIET = [43, 43, 49]
const AGAINST = [86, 180, 233] // blue and orange, which every eye tells apart
const ALIKE = [230, 120, 20]
const SHARED = [[72, 40, 120], [38, 130, 142], [253, 231, 37]] // grows in brightness
const TAIL = 14 // letters at the end of a layer's name that are never cut
const STEPS = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }

/** A table with its title, its scale and, of a heat map, the line that says what the cell at the pointer is. */
export function drawTable(table) {
  const made = element("figure", { className: `loom-figure loom-${table.kind}` },
    element("figcaption", { className: "loom-caption" }, table.title))
  const body = table.kind === "heat" ? heat(table) : rows(table)
  made.append(element("div", { className: "loom-scroll", role: "group", "aria-label": table.title }, body))
  if (table.kind === "heat") made.append(...below(table, body))
  if (table.note) made.append(element("div", { className: "loom-note" }, table.note))
  return made
}

/** A name; of a layer's, which has dots and no words, the end is always seen. */
function named(text) {
  const cut = /^\S+\.\S+\.\S+$/.test(text) ? Math.max(text.length - TAIL, 0) : text.length
  return element("span", { className: "loom-long", title: text },
    element("span", {}, text.slice(0, cut)), element("span", {}, text.slice(cut)))
}

function head(table) {
  const columns = table.columns.map((name) => element("th", { scope: "col" }, name))
  return element("thead", {}, element("tr", {}, element("th", { scope: "col" }, table.corner), ...columns))
}

function heat(table) {
  const lines = table.lines.map((line) => element("tr", {},
    element("th", { scope: "row", title: line.name }, line.name),
    ...table.columns.map((_, at) => field(line.cells[at], table.ends[0] !== "chance"))))
  const made = element("table", { role: "grid", "aria-label": table.title }, head(table), element("tbody", {}, ...lines))
  made.style.setProperty("--columns", table.columns.length)
  const first = made.querySelector("td[tabindex]")
  if (first) first.tabIndex = 0
  made.addEventListener("keydown", move)
  return made
}

function field(cell, twoSided) {
  if (!cell) return element("td", { role: "gridcell" })
  const [text, strength, told] = cell
  const made = element("td", { role: "gridcell", tabIndex: -1, title: told, "aria-label": told }, text || "\u00b7")
  if (strength) {
    const colour = colourOf(strength, twoSided)
    made.style.background = `rgb(${colour.join()})`
    made.style.color = luminance(colour) > 0.179 ? "#000" : "#fff"
  }
  return made
}

/** Arrow keys go from cell to cell; one of them takes part in the order of Tab. */
function move(event) {
  const { target, key, currentTarget } = event
  const [down, right] = STEPS[key] ?? []
  if (down === undefined || target.tagName !== "TD") return
  event.preventDefault()
  event.stopPropagation()
  const next = currentTarget.rows[target.parentElement.rowIndex + down]?.cells[target.cellIndex + right]
  if (!next?.hasAttribute("tabindex")) return
  target.tabIndex = -1
  next.tabIndex = 0
  next.focus()
}

function below(table, body) {
  const told = element("div", { className: "loom-told", role: "status" }, word("Point at a cell to read it."))
  for (const kind of ["pointerover", "focusin"]) {
    body.addEventListener(kind, ({ target }) => {
      if (target.tagName === "TD" && target.title) told.textContent = target.title
    })
  }
  const twoSided = table.ends[0] !== "chance"
  const stops = [-1, -0.5, 0, 0.5, 1].filter((stop) => twoSided || stop >= 0)
  const colours = stops.map((stop) => `rgb(${(stop ? colourOf(stop, twoSided) : twoSided ? QUIET : SHARED[0]).join()})`)
  const bar = element("span", { className: "loom-ramp" })
  bar.style.background = `linear-gradient(90deg, ${colours.join()})`
  return [told, element("div", { className: "loom-scale" }, spoken(table.ends[0]), bar, spoken(table.ends[1]))]
}

function rows(table) {
  const lines = table.lines.map((line) => element("tr", {},
    element("th", { scope: "row" }, named(line.name)),
    ...line.cells.map((cell, at) => (table.kind === "bars" && at === 0 ? bar(cell) : element("td", {}, cell?.[0] ?? "")))))
  return element("table", { "aria-label": table.title }, head(table), element("tbody", {}, ...lines))
}

function bar(cell) {
  const [text, strength, told] = cell ?? ["", 0, ""] // none where there is no figure
  const drawn = element("span", { className: "loom-bar" })
  drawn.style.width = `${Math.max(0, Math.min(1, strength)) * 100}%`
  return element("td", { className: "loom-barred", title: told },
    element("span", { className: "loom-track", "aria-hidden": "true" }, drawn), element("span", {}, text))
}

function colourOf(strength, twoSided) {
  const share = Math.min(Math.abs(strength), 1)
  if (twoSided) return mixed(QUIET, strength > 0 ? ALIKE : AGAINST, 0.2 + 0.8 * share)
  return share < 0.5 ? mixed(SHARED[0], SHARED[1], 2 * share) : mixed(SHARED[1], SHARED[2], 2 * share - 1)
}

function mixed(one, other, share) {
  return one.map((from, at) => Math.round(from + (other[at] - from) * share))
}

/** Of WCAG: above 0.179 black can be read better on it, below white. */
function luminance(colour) {
  const [red, green, blue] = colour.map((part) => part / 255).map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4))
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue
}
