// Load LoRA Stack: the list of rows in place of the text field and of the twelve fields of the first version.
//
// The text of the input `rows` stays the only truth: it is saved, sent and linked as ComfyUI does it, and shows itself
// where this file does not: on a subgraph, as the front end shows promoted texts (Nodes 2.0 of 1.58 shows no field of
// any), and on the node with the Text button or when it is linked.

import { RowsEditor } from "./editor.js"
import { after, hide, isLinked, lookAnew, takePlace, whileThere } from "../page/nodes.js"
import { captured } from "../page/undo.js"
import { word } from "../page/words.js"
import { onScreen, whenLoaded } from "../told/workflows.js"
import { masksOf } from "./mask.js"
import { modelOf, watch } from "./model.js"
import { newRow, print } from "../page/rows.js"

const NONE = "None"
const AS_TEXT = "lora_loom_rows_as_text"
const WIDTH = 340
const open = new WeakMap() // by workflow: the names of the files whose rows are folded out, by node

/** What a node of ours shows of its rows. */
export class Stack {
  constructor(node) {
    this.node = node
    this.rows = this.widget("rows")
    this.editor = new RowsEditor({
      changed: (text) => this.write(text), grown: () => this.fit(), showText: () => this.showText(true),
    })
    this.shape = { height: 0 }
    this.extra = 0 // px of the node that what is folded out takes
    this.list = node.addDOMWidget("rows_list", "loraloom_rows", this.editor.element, options(this.shape))
    this.list.serialize = false
    this.list.label = word("rows")
    this.back = node.addWidget("button", "rows_as_list", "", () => this.showText(false), { serialize: false })
    this.back.serialize = false
    this.back.label = word("Show as list")
    whileThere(node, (signal) => this.editor.hear(signal))
    after(this.rows, "callback", () => this.taken(this.rows.value))
    after(node, "onAdded", () => this.added())
    after(node, "onConfigure", () => this.configured())
    after(node, "onSerialize", (saved) => this.saved(saved))
    after(node, "onConnectionsChange", () => this.settle())
    after(node, "onRemoved", () => this.removed())
    for (const name of fields()) after(this.widget(name), "callback", () => this.settle())
    this.settle()
    node.setSize([Math.max(node.size[0], WIDTH), node.computeSize()[1]])
  }

  added() {
    this.editor.start(openOn(this.node))
    this.unwatch ??= watch(() => this.look())
    this.settle()
  }

  removed() {
    this.editor.stop()
    this.unwatch?.()
    this.unwatch = undefined
  }

  /** What model is connected is known when the whole graph is there. */
  look() {
    whenLoaded(async () => {
      if (this.node.graph) this.editor.know(await modelOf(this.node), masksOf(this.node))
    })
  }

  widget(name) {
    return this.node.widgets.find((widget) => widget.name === name)
  }

  /** Brings what is shown in line with what the node holds. */
  settle() {
    this.fold()
    this.editor.take(this.rows.value)
    this.show()
    takePlace(this.node, this.editor.element, ".loom-rows")
    this.look()
  }

  taken(text) {
    this.editor.take(text)
    this.fit()
  }

  /** The rows of the first version become text; those that are linked stay what they are. */
  fold() {
    const moved = [1, 2, 3, 4].filter((number) => !isLinked(this.node, ...fieldsOf(number)))
    const rows = moved.map((number) => this.unloaded(number)).filter(Boolean)
    if (rows.length) this.rows.value = [print(rows), this.rows.value].filter(Boolean).join("\n")
    for (const number of [1, 2, 3, 4]) {
      for (const name of fieldsOf(number)) {
        const widget = this.widget(name)
        hide(widget, moved.includes(number))
        widget.options.serialize = !moved.includes(number) // what says nothing is not sent, and not found fault with
        widget.options.advanced = false // or Nodes 2.0 offers to show what is hidden
      }
    }
  }

  unloaded(number) {
    const [file, strength, text] = fieldsOf(number).map((name) => this.widget(name))
    if (!file.value || file.value === NONE) return null
    const row = { ...newRow(file.value), strength: strength.value, text: text.value }
    file.value = NONE
    strength.value = text.value = 1
    return row
  }

  /** One of list and text. A text that is linked is shown as such, or its socket would be hidden. */
  show() {
    const linked = isLinked(this.node, "rows")
    const text = linked || Boolean(this.node.properties[AS_TEXT])
    const before = this.shown
    this.shown = `${text} ${linked}`
    hide(this.rows, !text)
    hide(this.list, text)
    hide(this.back, !text || linked)
    if (before !== this.shown) lookAnew(this.node)
    this.fit()
  }

  showText(text) {
    this.node.properties[AS_TEXT] = text
    this.editor.take(this.rows.value)
    this.show()
    captured()
  }

  write(text) {
    this.rows.value = text
    this.fit()
    captured()
  }

  /** The size that was saved is that of folded rows: what is folded out is no part of the workflow, nor of an undo. */
  configured() {
    this.extra = 0
    this.settle()
  }

  /** Whole pixels, as Nodes 2.0 measures what was set and finds fractions more. */
  saved(node) {
    node.size = [node.size[0], Math.round(node.size[1] - this.extra)]
  }

  /** The node is as high as its rows need, and higher only where it was made so; and by what is folded out. */
  fit() {
    const extra = this.list.hidden ? 0 : this.editor.extra()
    this.shape.height = this.editor.height() + extra + 2 * this.list.margin
    const needed = this.node.computeSize()[1] - extra
    const size = this.node.size[1] - this.extra
    const wanted = extra + (size <= (this.needed ?? 0) + 1 ? needed : Math.max(needed, size))
    Object.assign(this, { needed, extra })
    if (wanted !== this.node.size[1]) this.node.setSize([this.node.size[0], wanted])
    this.node.setDirtyCanvas?.(true, true)
  }
}

/** Rows stay folded out through an undo, which makes every node anew. */
function openOn(node) {
  const workflow = onScreen() ?? node
  if (!open.has(workflow)) open.set(workflow, new Map())
  const ofNodes = open.get(workflow)
  const id = `${node.graph.id} ${node.id}`
  if (!ofNodes.has(id)) ofNodes.set(id, new Set())
  return ofNodes.get(id)
}

/** The front end keeps these for good, with all that their functions can see: that is to be no node. */
function options(shape) {
  return {
    serialize: false, hideOnZoom: false, margin: 6, getMinHeight: () => shape.height, getMaxHeight: () => shape.height,
    getValue: () => "", setValue: () => {},
  }
}

function fieldsOf(number) {
  return [`lora_${number}`, `strength_${number}`, `text_strength_${number}`]
}

function fields() {
  return [1, 2, 3, 4].flatMap(fieldsOf)
}
