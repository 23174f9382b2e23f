// The tree of places to look in: all, favourites, recently used, and the folders.

import { element } from "../page/dom.js"
import { ALL, compareNames, FAVOURITES, RECENT } from "./found.js"
import { icon } from "./icons.js"
import { word } from "../page/words.js"

const STEP = 14 // px a level

/** `chosen(place)` is called for a place that is picked. */
export class Folders {
  constructor(chosen) {
    Object.assign(this, { chosen, open: new Set(), place: ALL, tops: [] })
    this.element = element("div", { className: "loom-places", role: "tree", "aria-label": word("Where to look") })
    this.element.addEventListener("keydown", (event) => this.key(event))
  }

  /** Counts anew; `special` are the places that are no folders, [place, words, icon, count] each. */
  show(names, special, place) {
    const roots = folderTree(names)
    if (!this.known && roots.length === 1) this.open.add(roots[0].place)
    this.known ||= roots.length > 0
    this.tops = [...special.map(([id, words, sign, count]) => ({ place: id, words, sign, count, below: [] })), ...roots]
    this.select(place)
  }

  /** Marks a place, with the folders on the way to it open. */
  select(place) {
    this.place = place
    for (let at = place.indexOf("/"); at >= 0; at = place.indexOf("/", at + 1)) {
      if (at < place.length - 1) this.open.add(place.slice(0, at + 1))
    }
    this.draw()
  }

  /** The row that has the focus keeps it; else the chosen one is where the keyboard comes in. */
  draw() {
    const focused = this.element.contains(document.activeElement) ? document.activeElement.place : null
    const rows = []
    const add = (folder, level) => {
      rows.push(this.row(folder, level))
      if (this.open.has(folder.place)) for (const each of folder.below) add(each, level + 1)
    }
    for (const top of this.tops) add(top, 1)
    this.element.replaceChildren(...rows)
    const at = (place) => rows.find((row) => row.place === place)
    const entry = at(focused) ?? at(this.place) ?? rows[0]
    if (entry) entry.tabIndex = 0
    if (focused !== null) entry?.focus()
  }

  row(folder, level) {
    const { place, words, sign, count, below } = folder
    const open = this.open.has(place)
    const turn = element("span", { className: "loom-turn" }, ...(below.length ? [icon("turn")] : []))
    const made = element("div", {
      className: "loom-place", role: "treeitem", tabIndex: -1, title: words, "aria-level": level,
      "aria-selected": String(place === this.place), place, folder,
    }, turn, icon(sign ?? "folder"), element("span", { className: "loom-cut" }, words),
      element("span", { className: "loom-dim" }, count.toLocaleString()))
    if (below.length) made.setAttribute("aria-expanded", String(open))
    made.style.paddingInlineStart = `${(level - 1) * STEP}px`
    made.addEventListener("click", (event) => {
      if (turn.contains(event.target) && below.length) this.turn(place, !open)
      else this.choose(folder)
    })
    return made
  }

  choose({ place, below }) {
    if (below.length) this.open.add(place)
    this.select(place)
    this.chosen(place)
  }

  turn(place, open) {
    if (open) this.open.add(place)
    else this.open.delete(place)
    this.draw()
  }

  /** As in any tree: up and down go through what is seen, left and right close and open. */
  key(event) {
    const rows = [...this.element.children]
    const at = rows.indexOf(document.activeElement)
    if (at < 0) return
    const { folder } = rows[at]
    const open = this.open.has(folder.place)
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: rows.length - 1 }[event.key]
    if (to !== undefined) focusRow(rows, rows[Math.max(0, Math.min(rows.length - 1, to))])
    else if (event.key === "ArrowRight" && open) focusRow(rows, rows[at + 1])
    else if (event.key === "ArrowRight" && folder.below.length) this.turn(folder.place, true)
    else if (event.key === "ArrowLeft" && open) this.turn(folder.place, false)
    else if (event.key === "ArrowLeft") focusRow(rows, rows.find((row) => row.folder.below.includes(folder)))
    else if (event.key === "Enter" || event.key === " ") this.choose(folder)
    else return
    event.preventDefault()
  }
}

function focusRow(rows, row) {
  if (!row) return
  for (const each of rows) each.tabIndex = each === row ? 0 : -1
  row.focus()
}

/** The folders of names, each with how many files are in it and below. */
function folderTree(names) {
  const folders = new Map([["", { below: [] }]])
  for (const name of names) {
    for (let at = name.indexOf("/"), from = 0; at >= 0; from = at + 1, at = name.indexOf("/", from)) {
      const place = name.slice(0, at + 1)
      if (!folders.has(place)) {
        const made = { place, words: name.slice(from, at), count: 0, below: [] }
        folders.set(place, made)
        folders.get(name.slice(0, from)).below.push(made)
      }
      folders.get(place).count += 1
    }
  }
  for (const { below } of folders.values()) below.sort((a, b) => compareNames(a.words, b.words))
  return folders.get("").below
}
