// The list of rows on the node: a switch, a name, two strengths; moved by its handle, by mouse or keyboard.

import { element, split } from "../page/dom.js"
import { toCanvas } from "../page/nodes.js"
import { word } from "../page/words.js"
import { find, listen, refresh } from "../library/library.js"
import { choose } from "../library/picker.js"
import { isRow, newRow, parse, print } from "./rows.js"
import { strengthField } from "./strength.js"

const ROW = 30 // px, as in css/stack.css
const FRAME = 56 // what is above and below the rows

/** An editor of a text of rows. `changed(text)` is called for every change that is made here. */
export class RowsEditor {
  constructor(changed, showText) {
    this.changed = changed
    this.items = []
    this.text = ""
    this.showText = showText
    this.list = null // while the node is in no graph
    this.element = element("div", { className: "loom loom-rows", tabIndex: -1 })
  }

  hear(signal) {
    this.element.addEventListener("keydown", (event) => this.key(event), { signal })
    this.element.addEventListener("paste", (event) => this.paste(event), { signal })
    this.element.addEventListener("copy", (event) => this.copy(event), { signal })
    this.element.addEventListener("wheel", toCanvas, { passive: false, signal })
  }

  /** The node came into a graph: it is drawn, and knows of new files. */
  start() {
    if (this.list) return
    this.build()
    this.draw()
    this.unlisten = listen(() => this.mark())
    refresh()
  }

  /** The front end may hold a node that is gone for good; only what is drawn anew when it comes back goes with it. */
  stop() {
    this.unlisten?.()
    this.list = this.add = this.everyone = null
    this.element.replaceChildren()
  }

  build() {
    this.list = element("div", { className: "loom-list", role: "list", "aria-label": word("LoRAs") })
    this.add = button("loom-add", word("+ Add LoRA"), word("Add LoRA"), () => this.pick(null))
    this.everyone = toggle(word("All rows"), () => this.switchAll())
    const why = word("Show the rows as text, to copy, paste or connect")
    const asText = button("loom-text", word("Text"), why, this.showText)
    this.element.append(
      element("div", { className: "loom-head" }, this.everyone, element("span", { className: "loom-grow" }),
        element("span", { className: "loom-label" }, word("model")), element("span", { className: "loom-label" }, word("text")),
        element("span", { className: "loom-end" })),
      this.list,
      element("div", { className: "loom-foot" }, this.add, element("span", { className: "loom-grow" }), asText),
    )
  }

  /** Takes over a text that was changed elsewhere. */
  take(text) {
    if (text === this.text) return
    this.text = text
    this.items = parse(text)
    this.draw()
  }

  height() {
    return FRAME + ROW * Math.max(1, this.items.length)
  }

  // -- changes ---------------------------------------------------------------------------------------------------

  commit(redraw = true) {
    this.text = print(this.items)
    this.changed(this.text)
    if (redraw) this.draw()
    else this.mark()
  }

  async pick(item) {
    const name = await choose(item ? item.name : "")
    if (name === null) return
    if (item) item.name = newRow(name).name
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

  switchAll() {
    const rows = this.items.filter(isRow)
    const on = !rows.every((row) => row.on)
    for (const row of rows) row.on = on
    this.commit()
  }

  // -- keyboard and clipboard ------------------------------------------------------------------------------------

  /** Keys stay here, or the front end would delete the node; but for its shortcuts with Ctrl. */
  key(event) {
    if (event.ctrlKey || event.metaKey) return
    event.stopPropagation()
    const index = this.indexOf(event.target)
    const way = { ArrowUp: -1, ArrowDown: 1 }[event.key]
    const typing = event.target instanceof HTMLInputElement
    if (index < 0) return
    if (way && (event.altKey || event.target.classList.contains("loom-grip"))) {
      event.preventDefault()
      this.move(index, index + way)
    } else if (way && !typing) {
      event.preventDefault()
      this.focus(index + way, `.${event.target.classList[0]}`)
    } else if (["Delete", "Backspace"].includes(event.key) && !typing) {
      event.preventDefault()
      this.remove(index)
    }
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
    if (field instanceof HTMLInputElement && field.selectionStart !== field.selectionEnd) return
    const index = this.indexOf(field)
    event.preventDefault()
    event.clipboardData.setData("text/plain", index < 0 ? this.text : print([this.items[index]]))
  }

  // -- looks -----------------------------------------------------------------------------------------------------

  draw() {
    if (!this.list) return
    const empty = element("div", { className: "loom-empty" }, word("No LoRA yet. Add one, or paste <lora:name:0.8> here."))
    const rows = this.items.map((item) => this.row(item))
    this.list.replaceChildren(...(rows.length ? rows : [empty]))
    this.mark()
  }

  row(item) {
    const row = element("div", { className: "loom-row", role: "listitem" }, this.grip(item), ...this.cells(item))
    row.append(button("loom-remove", "\u00d7", word("Remove {name}", { name: title(item) }), () => this.remove(this.items.indexOf(item))))
    return row
  }

  cells(item) {
    if (item.comment !== undefined) return [element("span", { className: "loom-comment" }, item.comment)]
    if (!isRow(item)) return [element("span", { className: "loom-fault", title: item.fault }, `${item.raw} ${item.fault}`)]
    const done = () => this.commit(false)
    const name = title(item)
    const text = strengthField({
      label: word("Text strength of {name}", { name }), done, get: () => item.text ?? item.strength,
      set: (value) => (item.text = value), empty: () => (item.text = null), follows: () => item.text === null,
    })
    const model = strengthField({
      label: word("Model strength of {name}", { name }), done, get: () => item.strength,
      set: (value) => {
        item.strength = value
        text.show()
      },
    })
    const on = toggle(word("{name} on", { name }), () => {
      item.on = !item.on
      done()
    })
    return [on, this.name(item), model.field, text.field]
  }

  name(item) {
    const [folder, bare] = split(item.name)
    const made = button("loom-name", "", word("Choose another file for {name}", { name: title(item) }), () => this.pick(item))
    const shown = element("span", { className: "loom-bare" }, ...halves(bare).map((half) => element("span", {}, half)))
    made.append(element("span", { className: "loom-folder" }, folder), shown)
    if (extras(item)) made.append(element("span", { className: "loom-extras" }, extras(item)))
    return made
  }

  grip(item) {
    const made = button("loom-grip", "", word("Move {name}; or use the arrow keys", { name: title(item) }), () => {})
    made.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return
      event.preventDefault()
      made.focus()
      made.setPointerCapture(event.pointerId)
      made.closest(".loom-row").classList.add("loom-moving")
    })
    made.addEventListener("pointermove", (event) => {
      if (made.hasPointerCapture(event.pointerId)) this.dragTo(made.closest(".loom-row"), event.clientY)
    })
    const end = () => {
      const row = made.closest(".loom-row")
      if (!row.classList.contains("loom-moving")) return
      row.classList.remove("loom-moving")
      this.move(this.items.indexOf(item), [...this.list.children].indexOf(row))
    }
    made.addEventListener("pointerup", end)
    made.addEventListener("lostpointercapture", end)
    return made
  }

  /** The dragged row goes where the pointer is; what it means is committed when it is let go. */
  dragTo(row, y) {
    const others = [...this.list.children].filter((other) => other !== row)
    const below = others.find((other) => y < middle(other)) ?? null
    if (row.nextElementSibling !== below) moveBefore(this.list, row, below)
  }

  /** What may have changed without the rows: which are on, which files there are. */
  mark() {
    const rows = this.items.filter(isRow)
    pressed(this.everyone, rows.length > 0 && rows.every((row) => row.on))
    this.everyone.disabled = !rows.length
    this.items.forEach((item, index) => {
      const row = this.list.children[index]
      if (!isRow(item) || !row) return
      const file = find(item.name)
      row.classList.toggle("loom-off", !item.on)
      row.classList.toggle("loom-missing", file === undefined || Boolean(file.fault))
      row.querySelector(".loom-name").title = tooltip(item, file)
      pressed(row.querySelector(".loom-switch"), item.on)
    })
  }

  indexOf(target) {
    return [...this.list.children].indexOf(target.closest?.(".loom-row") ?? null)
  }

  focus(index, selector) {
    const row = this.list.children[index]
    const wanted = row?.querySelector(selector) ?? row?.querySelector("button")
    wanted?.focus()
  }
}

function tooltip(item, file) {
  if (!file) return `${item.name}\n${word("not found: it is in no loras folder, or in more than one")}`
  const words = file.words?.length && word("trigger: {words}", { words: file.words.join(", ") })
  const told = [file.name, file.family, words, extras(item), file.fault]
  return told.filter(Boolean).join("\n")
}

function title(item) {
  return item.comment ?? item.raw ?? split(item.name)[1]
}

/** What a row has beside its strengths. */
function extras({ blocks, start, end }) {
  const part = [start !== 0 && word("from {start}", { start }), end !== 1 && word("to {end}", { end })]
  return [blocks, ...part].filter(Boolean).join(", ")
}

/** A long name is cut before its end, where versions and epochs stand. */
function halves(name) {
  const cut = name.length > 24 ? name.length - 8 : name.length
  return [name.slice(0, cut), name.slice(cut)]
}

function middle(row) {
  const { top, height } = row.getBoundingClientRect()
  return top + height / 2
}

/** Without losing focus and pointer where the browser can. */
function moveBefore(list, row, below) {
  if (list.moveBefore) list.moveBefore(row, below)
  else list.insertBefore(row, below)
}

function button(className, text, label, action) {
  const made = element("button", { type: "button", className, title: label, "aria-label": label }, text)
  made.addEventListener("click", action)
  return made
}

function toggle(label, action) {
  const made = button("loom-switch", "", label, action)
  made.setAttribute("role", "switch")
  return made
}

function pressed(made, on) {
  made.setAttribute("aria-checked", String(on))
}
