// One row of the list: a handle, a switch, a picture, the name, what more there is to say, and two strengths.

import { find, pictureUrl } from "../library/library.js"
import { button, pressed, toggle } from "../page/controls.js"
import { element, split } from "../page/dom.js"
import { Details } from "./details.js"
import { dragRow } from "./drag.js"
import { place } from "./mask.js"
import { fits } from "./model.js"
import { isRow } from "../page/rows.js"
import { strengthField } from "./strength.js"
import { spoken, word } from "../page/words.js"

/** What the list shows of an item. `editor` is asked for every change. */
export class RowView {
  constructor(item, editor) {
    this.item = item
    this.editor = editor
    this.line = element("div", { className: "loom-cells" }, this.grip(), ...this.cells())
    this.element = element("div", { className: "loom-row", role: "listitem" }, this.line)
    this.line.append(this.ends())
  }

  cells() {
    const { item, editor } = this
    if (item.comment !== undefined) return [element("span", { className: "loom-comment" }, item.comment)]
    if (!isRow(item)) {
      return [element("span", { className: "loom-fault", title: item.fault }, `${item.raw} ${item.fault}`)]
    }
    this.on = toggle("loom-switch", word("{name} on", { name: title(item) }), () => {
      item.on = !item.on
      editor.commit(false)
    })
    this.picture = element("div", { className: "loom-row-thumb", "aria-hidden": "true" })
    this.name = button("loom-name", "", word("Choose another file for {name}", { name: title(item) }), () => editor.pick(item))
    this.name.append(element("span", { className: "loom-bare" }, ...halves(title(item))))
    this.more = button("loom-row-more", "", "", () => this.unfold(!this.details))
    const named = element("div", { className: "loom-named" }, this.name, this.more)
    return [this.on, this.picture, named, ...this.strengths()]
  }

  strengths() {
    const { item, editor } = this
    const done = () => editor.commit(false)
    const text = strengthField({
      label: word("Text strength of {name}", { name: title(item) }), done, get: () => item.text ?? item.strength,
      set: (value) => (item.text = value), empty: () => (item.text = null), follows: () => item.text === null,
    })
    const model = strengthField({
      label: word("Model strength of {name}", { name: title(item) }), done, get: () => item.strength,
      set: (value) => {
        item.strength = value
        text.show()
      },
    })
    return [model.field, text.field]
  }

  ends() {
    const { item, editor } = this
    const drop = () => editor.remove(editor.items.indexOf(item))
    const remove = button("loom-remove", "\u00d7", word("Remove {name}", { name: title(item) }), drop)
    const menu = button("loom-menu-button", "\u22ef", word("More for {name}", { name: title(item) }), () => editor.openMenu(item, menu))
    menu.setAttribute("aria-haspopup", "menu")
    return element("div", { className: "loom-row-ends" }, remove, menu)
  }

  grip() {
    const { item, editor } = this
    const made = button("loom-grip", "", word("Move {name}; or use the arrow keys", { name: title(item) }), () => {})
    dragRow(made, editor.list, (row) => editor.move(editor.items.indexOf(item), [...editor.list.children].indexOf(row)))
    return made
  }

  unfold(open) {
    if (!isRow(this.item)) return
    this.details?.element.remove()
    this.details = open ? new Details(this.item, () => this.editor.commit(false), this.editor) : null
    if (open) this.element.append(this.details.element)
    this.editor.open[open ? "add" : "delete"](this.item.name)
    this.mark()
    this.editor.grown()
  }

  /** What may have changed without the row: the file, and the model that is connected. */
  mark() {
    const { item, editor } = this
    if (!isRow(item)) return
    const file = find(item.name)
    const state = {
      "loom-off": !item.on, "loom-missing": file === undefined || Boolean(file.fault),
      "loom-foreign": !fits(file, editor.model),
    }
    for (const [name, holds] of Object.entries(state)) this.element.classList.toggle(name, holds)
    this.name.title = tooltip(item, file)
    pressed(this.on, item.on)
    this.showPicture(file)
    this.showMore(file)
    this.details?.show(file)
  }

  showPicture(file) {
    const source = file?.picture ? pictureUrl(file) : ""
    if (this.source === source) return
    this.source = source
    const letter = title(this.item).replace(/[^\p{L}\p{N}]/gu, "")[0] ?? "?"
    this.picture.replaceChildren(source
      ? element("img", { alt: "", loading: "lazy", decoding: "async", draggable: false, src: source })
      : letter.toUpperCase())
  }

  /** The line under the name; it folds out what it is about. */
  showMore(file) {
    const { item, editor } = this
    const said = [...faults(item, file, editor.masks), ...extras(item)]
    const count = (item.words ?? file?.words ?? []).length
    if (count) said.push(count === 1 ? word("1 word") : word("{count} words", { count }))
    const family = file?.family ? [chip(file, editor.model)] : []
    this.more.replaceChildren(element("span", { className: "loom-row-arrow" }), ...family,
      element("span", { className: "loom-extras" }, said.join(" \u00b7 ")))
    const label = word("Trigger words, blocks and parts of sampling and picture of {name}", { name: title(item) })
    this.more.setAttribute("aria-label", [label, ...family.map((each) => each.title), ...said].join(", "))
    this.more.title = label
    this.more.setAttribute("aria-expanded", String(Boolean(this.details)))
  }
}

/** The family of a file; it turns where the model that is connected is of another. */
function chip(file, model) {
  const other = !fits(file, model)
  const names = { family: file.family, model: model.family }
  return element("span", {
    className: other ? "loom-row-chip loom-row-wrong" : "loom-row-chip",
    title: other ? word("for {family}, but the model is {model}", names) : word("for {family}", names),
  }, other ? `\u26a0 ${word("{family}, not {model}", names)}` : file.family)
}

function faults(item, file, masks) {
  const number = Math.abs(item.mask)
  const lost = number && !masks.includes(number) && word("{mask} is not connected", { mask: `mask${number}` })
  if (!file) return [word("not found"), lost].filter(Boolean)
  const fault = file.fault && (file.ruled_out ? word("on a takedown list") : word("broken file"))
  return [fault, !item.on && word("off"), lost].filter(Boolean)
}

function tooltip(item, file) {
  if (!file) return `${item.name}\n${word("not found: it is in no loras folder, or in more than one")}`
  const words = file.words?.length && word("trigger: {words}", { words: file.words.join(", ") })
  return [file.name, file.family, words, extras(item).join(", "), spoken(file.fault)].filter(Boolean).join("\n")
}

export function title(item) {
  return item.comment ?? item.raw ?? split(item.name)[1]
}

/** What a row has beside its strengths. */
function extras({ blocks, start, end, mask }) {
  const percent = (share) => Math.round(100 * share)
  const span = (start !== 0 || end !== 1) && `${percent(start)}\u2013${percent(end)} %`
  return [blocks, span, mask && place(mask)].filter(Boolean)
}

/** A long name is cut before its end, where versions and epochs stand. */
function halves(name) {
  const cut = name.length > 24 ? name.length - 8 : name.length
  return [name.slice(0, cut), name.slice(cut)].map((half) => element("span", {}, half))
}
