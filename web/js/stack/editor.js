// The list of rows on the node: what is changed in it, by mouse, keyboard, menu or clipboard. A row is in row.js.

import { app } from "../../../../scripts/app.js"
import { listen, refresh } from "../library/library.js"
import { choose } from "../library/picker.js"
import { button, pressed, toggle } from "../page/controls.js"
import { element } from "../page/dom.js"
import { toCanvas } from "../page/nodes.js"
import { word } from "../page/words.js"
import { Far } from "./far.js"
import { showRowMenu } from "./menu.js"
import { UNKNOWN } from "./model.js"
import { RowView } from "./row.js"
import { isRow, newRow, parse, print } from "../page/rows.js"
import { showSaved } from "./saved.js"

const ROW = 40 // px of a row that is folded, as in css/stack.css
const FRAME = 56 // what is above and below the rows

/** An editor of a text of rows. `changed(text)` is called for every change here, `grown()` for another height. */
export class RowsEditor {
  constructor({ changed, grown, showText }) {
    Object.assign(this, { changed, grown, showText })
    this.items = []
    this.views = []
    this.text = ""
    this.model = UNKNOWN
    this.masks = [] // numbers of those that are connected
    this.open = new Set() // names of files whose rows are folded out
    this.list = null // while the node is in no graph
    this.seen = 0
    this.element = element("div", { className: "loom loom-rows", tabIndex: -1 })
    this.far = new Far(this.element)
  }

  hear(signal) {
    this.far.hear(signal)
    for (const kind of ["keydown", "paste", "copy", "contextmenu"]) {
      this.element.addEventListener(kind, (event) => this[kind](event), { signal })
    }
    this.element.addEventListener("wheel", toCanvas, { passive: false, signal })
  }

  /** The node came into a graph: it is drawn, and knows of new files. */
  start(open) {
    if (this.list) return
    this.open = open
    this.build()
    this.draw()
    this.unlisten = listen(() => this.mark())
    this.sizes = new ResizeObserver(() => this.grown())
    this.sizes.observe(this.list)
    refresh()
  }

  /** The front end may hold a node that is gone for good; only what is drawn anew when it comes back goes with it. */
  stop() {
    this.unlisten?.()
    this.sizes?.disconnect()
    this.list = this.add = this.everyone = this.sizes = null
    this.views = []
    this.seen = 0
    this.element.replaceChildren()
  }

  build() {
    this.list = element("div", { className: "loom-rows-list", role: "list", "aria-label": word("LoRAs") })
    this.add = button("loom-add", word("+ Add LoRA"), word("Add LoRA"), () => this.pick(null))
    this.everyone = toggle("loom-switch", word("All rows"), () => this.switchAll())
    const saved = button("loom-saved-button", word("Saved \u25be"), word("Saved stacks"), () => showSaved(saved, this))
    saved.setAttribute("aria-haspopup", "dialog")
    const why = word("Show the rows as text, to copy, paste or connect")
    const asText = button("loom-text", word("Text"), why, this.showText)
    this.element.append(
      this.far.element,
      element("div", { className: "loom-head" }, this.everyone, element("span", { className: "loom-label-all" }, word("all")),
        element("span", { className: "loom-grow" }), element("span", { className: "loom-label" }, word("model")),
        element("span", { className: "loom-label" }, word("text")), element("span", { className: "loom-end" })),
      this.list,
      element("div", { className: "loom-foot" }, this.add, saved, element("span", { className: "loom-grow" }), asText),
    )
  }

  /** Takes over a text that was changed elsewhere. */
  take(text) {
    if (text === this.text) return
    this.text = text
    this.items = parse(text)
    this.draw()
  }

  /** Takes over what is known of the model and the masks that are connected. */
  know(model, masks) {
    if (model === this.model && String(masks) === String(this.masks)) return
    Object.assign(this, { model, masks })
    this.mark()
  }

  /** Of the rows as they are folded. */
  height() {
    return FRAME + ROW * Math.max(1, this.items.length)
  }

  /** What is folded out takes so much more, as last seen: of a node out of sight there is nothing to measure. */
  extra() {
    const seen = this.list?.offsetHeight
    if (seen) this.seen = Math.max(0, seen - ROW * Math.max(1, this.items.length))
    this.reserve()
    return this.seen
  }

  /** Rows that are not drawn, being seen from afar, take as much room as ever. */
  reserve() {
    if (this.list) this.list.style.containIntrinsicHeight = `${ROW * Math.max(1, this.items.length) + this.seen}px`
  }

  // -- changes ---------------------------------------------------------------------------------------------------

  commit(redraw = true) {
    this.text = print(this.items)
    if (redraw) this.draw()
    else this.mark()
    this.changed(this.text)
  }

  async pick(item) {
    const add = (added) => {
      this.items.push(newRow(added))
      this.commit()
    }
    const family = this.model.judged ? this.model.family : ""
    const name = await choose(item ? item.name : "", { family, add: item ? null : add })
    if (name === null || !this.list) return
    if (item) Object.assign(item, { name: newRow(name).name, words: null })
    else this.items.push(newRow(name))
    this.commit()
    this.focus(item ? this.items.indexOf(item) : this.items.length - 1, ".loom-name")
  }

  remove(index) {
    this.items.splice(index, 1)
    this.commit()
    if (this.items.length) this.focus(Math.min(index, this.items.length - 1), ".loom-remove")
    else this.add.focus()
  }

  move(from, to) {
    if (to < 0 || to >= this.items.length || from === to) return
    this.items.splice(to, 0, ...this.items.splice(from, 1))
    this.commit()
    this.focus(to, ".loom-grip")
  }

  /** Puts rows, or comments, before the one at `index`. */
  insert(index, items) {
    this.items.splice(index, 0, ...items)
    this.commit()
    this.focus(index, ".loom-name")
  }

  replaceAll(items) {
    this.items = items
    this.commit()
  }

  switchAll() {
    const rows = this.items.filter(isRow)
    const on = !rows.every((row) => row.on)
    for (const row of rows) row.on = on
    this.commit()
  }

  // -- keyboard and clipboard ------------------------------------------------------------------------------------

  /** Keys stay here, or the front end would delete the node; but for its shortcuts with Ctrl. */
  keydown(event) {
    if (event.ctrlKey || event.metaKey) return this.shortcut(event)
    event.stopPropagation()
    const index = this.indexOf(event.target)
    if (index < 0 || event.target.closest(".loom-row-details")) return
    if (this.rowKey(event, index)) event.preventDefault()
  }

  /** The front end leaves undo to fields; one in which nothing is being typed has none. */
  shortcut(event) {
    const key = event.key.toLowerCase()
    const command = { z: event.shiftKey ? "Redo" : "Undo", y: "Redo" }[key]
    if (!command || !(event.target instanceof HTMLInputElement) || event.target.matches(".loom-typing")) return
    event.preventDefault()
    event.stopPropagation()
    app.extensionManager.command.execute(`Comfy.${command}`)
  }

  /** Whether the key means something for a row. */
  rowKey({ key, altKey, shiftKey, target }, index) {
    const way = { ArrowUp: -1, ArrowDown: 1 }[key]
    const typing = target instanceof HTMLInputElement
    if (key === "ContextMenu" || (key === "F10" && shiftKey)) this.openMenu(this.items[index], target)
    else if (way && (altKey || target.classList.contains("loom-grip"))) this.move(index, index + way)
    else if (way && !typing) this.focus(index + way, `.${target.classList[0]}`)
    else if (["Delete", "Backspace"].includes(key) && !typing) this.remove(index)
    else return false
    return true
  }

  paste(event) {
    const items = parse(event.clipboardData?.getData("text") ?? "").filter(isRow)
    event.stopPropagation()
    if (!items.length) return
    event.preventDefault()
    const index = this.indexOf(event.target)
    this.items.splice(index < 0 ? this.items.length : index + 1, 0, ...items)
    this.commit()
  }

  copy(event) {
    event.stopPropagation()
    const field = event.target
    if (field.value !== undefined && field.selectionStart !== field.selectionEnd) return
    const index = this.indexOf(field)
    event.preventDefault()
    event.clipboardData.setData("text/plain", index < 0 ? this.text : print([this.items[index]]))
  }

  contextmenu(event) {
    const index = this.indexOf(event.target)
    if (index < 0 || (event.target instanceof HTMLInputElement && event.target.type === "text")) return
    event.preventDefault()
    event.stopPropagation()
    this.openMenu(this.items[index], { x: event.clientX, y: event.clientY })
  }

  openMenu(item, at) {
    showRowMenu(this, item, at)
  }

  // -- looks -----------------------------------------------------------------------------------------------------

  draw() {
    if (!this.list) return
    const empty = element("div", { className: "loom-empty" }, nothing())
    this.views = this.items.map((item) => new RowView(item, this))
    this.list.replaceChildren(...(this.views.length ? this.views.map((view) => view.element) : [empty]))
    this.reserve()
    this.mark()
    for (const view of this.views) if (this.open.has(view.item.name)) view.unfold(true)
  }

  /** What may have changed without the rows: which are on, which files there are, and for which models. */
  mark() {
    if (!this.list) return
    const rows = this.items.filter(isRow)
    pressed(this.everyone, rows.length > 0 && rows.every((row) => row.on))
    this.everyone.disabled = !rows.length
    for (const view of this.views) view.mark()
    this.far.show(this.items, nothing())
    this.grown()
  }

  indexOf(target) {
    return this.list ? [...this.list.children].indexOf(target.closest?.(".loom-row") ?? null) : -1
  }

  focus(index, selector) {
    const row = this.list.children[index]
    const wanted = row?.querySelector(selector) ?? row?.querySelector("button")
    wanted?.focus()
  }
}

function nothing() {
  return word("No LoRA yet. Add one, or paste <lora:name:0.8> here.")
}
