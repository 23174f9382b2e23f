// The page of a data set: its pictures with captions to edit, marks to filter by, and a selection to change at once.

import { element } from "../page/dom.js"
import { word } from "../page/words.js"
import { add, choose, takeDrops } from "./adding.js"
import { Book } from "./book.js"
import { Bulk } from "./bulk.js"
import { button, rename } from "./controls.js"
import { describe } from "./describe.js"
import { Filters } from "./filters.js"
import { Grid } from "./grid.js"
import { pressed } from "./keys.js"
import { toGraph } from "./loading.js"
import { paintMask } from "./masking.js"
import { captions, pictures } from "./words.js"

const TICK = 34 // px of the corner that selects a further picture
const SIDES = { min: 140, max: 420, value: 210 } // px of a picture

/**
 * Opens the page of a folder; resolves when it is closed. `asked` is how the node reads it. `node` is told with
 * `readMasks(value)`, which says whether it could be set, and `show(picture)`, by its name below input.
 */
export function open(asked, node) {
  return new Promise((resolve) => new Page(asked, node, resolve).open())
}

class Page {
  constructor(asked, node, resolve) {
    this.asked = asked
    this.node = node
    this.resolve = resolve
    this.wanted = innerWidth < 640 ? SIDES.min : SIDES.value
    this.selected = new Set()
    this.shown = []
    this.frames = this.masks = false
    this.book = new Book(asked, node, () => this.soon(), (words, problem) => this.say(words, problem))
    this.filters = new Filters(() => this.show())
    this.bulk = new Bulk(this)
    this.grid = new Grid(this, (names) => this.inSight(names))
    const label = word("Pictures and captions in {folder}", { folder: asked.folder })
    this.dialog = element("dialog", { className: "loom loom-set-page", tabIndex: -1, "aria-label": label },
      this.head(), this.filters.element, this.grid.element, this.bulk.element, this.foot())
    this.listen()
  }

  head() {
    this.counted = element("span", { className: "loom-set-dim" })
    this.undo = button(word("Undo"), () => this.book.undo())
    this.redo = button(word("Redo"), () => this.book.redo())
    this.adds = button(word("Add pictures"), () => this.choose())
    const close = button("\u2715", () => this.close(), word("Close"))
    close.className = "loom-set-close"
    return element("div", { className: "loom-set-page-head" },
      element("h2", { title: this.asked.folder }, this.asked.folder), this.counted, element("span", { className: "loom-set-grow" }),
      this.undo, this.redo, this.adds, close)
  }

  foot() {
    this.status = element("div", { className: "loom-set-status", role: "status" })
    const frames = this.toggle(word("Crop"), (on) => (this.frames = on), word("What training keeps of each picture"))
    const learned = word("What is learned of pictures with a mask file")
    const masks = this.toggle(word("Masks"), (on) => (this.masks = on), learned)
    this.overlay = masks.firstChild
    const { min, max } = SIDES
    const size = element("input", { type: "range", min, max, step: 10, "aria-label": word("Size of pictures") })
    size.value = String(this.wanted)
    size.addEventListener("input", () => {
      this.wanted = Number(size.value)
      this.grid.layout()
    })
    return element("div", { className: "loom-set-page-foot" }, this.status, frames, masks, size)
  }

  toggle(label, set, title) {
    const box = element("input", { type: "checkbox" })
    box.addEventListener("change", () => {
      set(box.checked)
      this.grid.layout()
    })
    return element("label", { title }, box, label)
  }

  listen() {
    const { dialog } = this
    dialog.addEventListener("keydown", (event) => pressed(this, event))
    dialog.addEventListener("focus", () => this.keepFocus())
    dialog.addEventListener("cancel", (event) => event.preventDefault())
    dialog.addEventListener("close", () => this.closed())
    takeDrops(dialog, (coming) => this.add(coming))
    for (const kind of ["keyup", "paste", "copy", "cut", "wheel"]) {
      dialog.addEventListener(kind, (event) => event.stopPropagation())
    }
  }

  async open() {
    document.body.append(this.dialog)
    this.dialog.showModal()
    this.grid.start()
    this.say(word("Reading the folder"))
    await this.load()
    this.grid.focus(this.grid.current)
  }

  async load() {
    try {
      await this.book.load()
      this.show()
      this.say(this.book.locked ? word("Only shown, not changed here: {why}.", { why: this.book.locked }) : "")
    } catch (error) {
      this.book.pictures = []
      this.show()
      this.say(error.message, true)
    }
  }

  /** What is typed in a field that has the focus is sent before. */
  close() {
    document.activeElement?.blur?.()
    this.dialog.close()
  }

  /** It also closes to step aside, and is then open again or waits for it. */
  closed() {
    if (this.aside || this.dialog.open) return
    this.book.close()
    this.grid.stop()
    this.dialog.remove()
    this.book.turn(() => this.resolve())
  }

  // -- what is shown --------------------------------------------------------------------------------------------------

  soon() {
    this.due ??= requestAnimationFrame(() => {
      this.due = undefined
      this.show()
    })
  }

  show() {
    if (!this.dialog.isConnected) return
    const { pictures: held, locked, done, undone } = this.book
    for (const name of this.selected) if (!this.book.byName.has(name)) this.selected.delete(name)
    this.shown = this.filters.chosen(held)
    this.grid.show(this.shown)
    const hidden = [...this.selected].filter((name) => !this.grid.index.has(name)).length
    this.bulk.show(held.filter(({ name }) => this.selected.has(name)), hidden, locked)
    const bare = held.filter(({ caption }) => !caption).length
    const left = this.book.inspecting ? held.filter(({ look }) => !look).length : 0
    const more = this.book.total > held.length ? word(", the first of {total}", { total: this.book.total }) : ""
    const all = pictures(held.length) + more
    this.counted.textContent = [
      this.shown.length < held.length ? word("{n} of {all}", { n: this.shown.length, all }) : all,
      bare ? word("{n} without a caption", { n: bare }) : held.length ? word("all with captions") : "",
      left ? word("checking, {n} left", { n: left }) : "",
    ].filter(Boolean).join(" \u00b7 ")
    this.undo.disabled = !done.length
    this.redo.disabled = !undone.length
    const [last, next] = [done.at(-1)?.words, undone.at(-1)?.words]
    rename(this.undo, word("Undo"), last ? word("Undo: {step} (Ctrl+Z)", { step: last }) : word("Nothing to undo"))
    rename(this.redo, word("Redo"), next ? word("Redo: {step} (Ctrl+Shift+Z)", { step: next }) : word("Nothing to redo"))
    this.adds.disabled = Boolean(locked)
    this.keepFocus()
  }

  /** Where a picture went that had the keyboard, it stays on the page: keys are not to reach the graph behind it. */
  keepFocus() {
    if (![document.body, this.dialog].includes(document.activeElement)) return
    this.filters.search.focus()
    this.grid.focus(this.grid.current)
  }

  say(words, problem = false) {
    this.status.textContent = words
    this.status.classList.toggle("loom-set-alert", problem)
  }

  inSight(names) {
    this.book.first = names
  }

  stateOf(name, current) {
    return { selected: this.selected.has(name), current, locked: this.book.locked }
  }

  // -- what is done ---------------------------------------------------------------------------------------------------

  /** Told twice of what was typed when the focus moves on; what waits for an answer, or lost to another's, stays so. */
  edited(name, text) {
    const { mine, pending } = this.book.byName.get(name) ?? {}
    if (text !== mine && text !== pending) this.book.change([{ name, text }], word("the caption of {name}", { name }))
  }

  change(edits, words) {
    this.book.change(edits, words)
  }

  keepMine({ name, mine }) {
    this.book.change([{ name, text: mine }], word("the caption of {name}", { name }))
  }

  dropMine(picture) {
    this.book.dropMine(picture)
  }

  takeOut() {
    this.book.take([...this.selected])
  }

  async describe() {
    const edits = await describe(this.book.pictures.filter(({ name }) => this.selected.has(name)), this.asked)
    if (edits.length) this.book.change(edits, word("{captions} by a workflow", { captions: captions(edits.length) }))
  }

  /** Steps aside for ComfyUI's mask editor, and comes back. */
  async beside(editor) {
    this.aside = true
    this.dialog.close()
    try {
      return await editor()
    } finally {
      this.aside = false
      this.dialog.showModal()
    }
  }

  paintMask(name) {
    return paintMask(this, name)
  }

  toGraph(name) {
    return toGraph(this, name)
  }

  drawMasks() {
    this.masks = this.overlay.checked = true
    this.grid.layout()
  }

  next(name, by) {
    const next = this.grid.beside(name, by)
    if (next && next !== name) this.grid.focus(next, true)
  }

  /** Click: this alone; with Ctrl: this, too; with Shift: all up to this. The tick and Space are as with Ctrl. */
  pick(name, event) {
    const range = event.shiftKey && this.anchor && this.grid.index.has(this.anchor)
    const toggles = event.ctrlKey || event.metaKey || event.detail === 0 || event.offsetX < TICK && event.offsetY < TICK
    if (range) {
      const [from, to] = [this.grid.index.get(this.anchor), this.grid.index.get(name)].sort((a, b) => a - b)
      for (const picture of this.shown.slice(from, to + 1)) this.selected.add(picture.name)
    } else if (toggles) {
      if (!this.selected.delete(name)) this.selected.add(name)
    } else {
      this.selected = this.selected.size === 1 && this.selected.has(name) ? new Set() : new Set([name])
    }
    if (!range) this.anchor = name
    this.grid.current = name
    this.show()
  }

  selectAll() {
    this.selected = new Set(this.shown.map(({ name }) => name))
    this.show()
  }

  selectNone() {
    this.selected.clear()
    this.show()
    this.grid.focus(this.grid.current)
  }

  // -- further pictures -----------------------------------------------------------------------------------------------

  choose() {
    this.add(choose())
  }

  async add(coming) {
    try {
      const found = await coming
      if (!found.files.length) return
      const { words } = await add(found, this.asked, (text) => this.say(text))
      await this.book.load()
      this.say(words)
    } catch (error) {
      this.say(word("Not added: {why}", { why: error.message }), true)
    }
  }
}
