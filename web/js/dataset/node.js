// LoRA Dataset: the folders to choose from, further pictures by drop or upload, and the page of pictures and captions.
//
// The text of the input `folder` stays the only truth, and its field as it is: this bar stands below the fields and
// writes into it.

import { app } from "../../../../scripts/app.js"
import { element } from "../page/dom.js"
import { after, takePlace, toCanvas, whileThere } from "../page/nodes.js"
import { word } from "../page/words.js"
import { add, carriesFiles, choose, dropped } from "./adding.js"
import { chooseFolder } from "./folders.js"
import { open } from "./page.js"
import { putLoadImage } from "./loading.js"
import { folders } from "./server.js"
import { pictures } from "./words.js"

const NAME = "$$lora_loom_pictures" // $$, or it is offered as an input of subgraphs
const HEIGHT = 58 // px
const MARGIN = 8 // px
const FIELDS = [
  "folder", "trigger", "resolution", "resolutions", "bucket_step", "masks", "class_images", "caption_weights",
]

/** The bar of a node. */
export class Pictures {
  constructor(node) {
    this.node = node
    this.folder = node.widgets.find(({ name }) => name === "folder")
    this.folders = button(word("Folders"))
    this.uploads = button(word("Upload"))
    this.opens = button(word("Pictures and captions"))
    this.opens.classList.add("loom-set-main")
    this.words = element("div", { className: "loom-set-words", role: "status" })
    this.element = element("div", { className: "loom loom-set" },
      element("div", { className: "loom-set-buttons" }, this.folders, this.uploads, this.opens), this.words)
    const widget = node.addDOMWidget(NAME, "loraloom_pictures", this.element, options())
    widget.serialize = false
    widget.label = word("pictures")
    whileThere(node, (signal) => this.hear(signal))
    after(node, "onAdded", () => takePlace(node, this.element, ".loom-set"))
    after(this.folder, "callback", () => this.settle())
    after(node, "onConfigure", () => this.settle())
    after(node, "onConnectionsChange", () => this.settle())
    this.settle()
  }

  hear(signal) {
    this.folders.addEventListener("click", () => this.chooseFolder(), { signal })
    this.uploads.addEventListener("click", () => this.add(choose()), { signal })
    this.opens.addEventListener("click", () => this.openPage(), { signal })
    this.element.addEventListener("wheel", toCanvas, { passive: false, signal })
    this.takesDrops(signal)
  }

  linked(name) {
    return this.node.inputs.some((input) => input.name === name && input.link != null)
  }

  /** Brings what is said in line with what the node holds. */
  async settle() {
    const linked = this.linked("folder")
    const images = this.linked("images")
    const folder = this.folder.value.trim()
    this.folders.disabled = this.uploads.disabled = linked || images
    this.opens.disabled = linked || images || !folder
    if (images) return this.say(word("The connected images are used."))
    if (linked) return this.say(word("The folder comes from another node."))
    if (!folder) return this.say(word("Drop pictures here, or choose a folder."))
    await this.count(folder)
  }

  /** What was said meanwhile stays. A folder that cannot be listed is told of when it is used. */
  async count(folder) {
    this.say("")
    const { said } = this
    const all = await folders().catch(() => ({ folders: [] }))
    const found = all.folders.find(({ name }) => name === folder)
    if (found && said === this.said) this.say(pictures(found.pictures))
  }

  say(words, problem = false) {
    this.said = {}
    this.words.textContent = this.words.title = words
    this.words.classList.toggle("loom-set-alert", problem)
  }

  write(value, field = this.folder) {
    field.value = value
    field.callback?.(value)
    app.extensionManager?.workflow?.activeWorkflow?.changeTracker?.captureCanvasState?.()
  }

  async chooseFolder() {
    const chosen = await chooseFolder(this.folder.value.trim(), this.folders)
    if (chosen !== null) this.write(chosen)
  }

  asked() {
    const value = (name) => this.node.widgets.find((widget) => widget.name === name)?.value ?? ""
    return Object.fromEntries(FIELDS.map((name) => [name, name === "folder" ? value(name).trim() : value(name)]))
  }

  async openPage() {
    await open(this.asked(), { readMasks: (value) => this.readMasks(value), show: (name) => putLoadImage(this.node, name) })
    this.settle()
    this.opens.focus({ preventScroll: true })
  }

  /** Sets which masks are read; false where another node says it. */
  readMasks(value) {
    if (this.linked("masks")) return false
    this.write(value, this.node.widgets.find(({ name }) => name === "masks"))
    return true
  }

  // -- further pictures -----------------------------------------------------------------------------------------------

  /** Anywhere on the node, and on the bar, which lies over it where the node is drawn. */
  takesDrops(signal) {
    const takes = (event) => carriesFiles(event) && !this.uploads.disabled
    this.node.onDragOver = takes
    this.node.onDragDrop = (event) => {
      if (!takes(event)) return false
      this.add(dropped(event.dataTransfer))
      return true
    }
    this.element.addEventListener("dragover", (event) => takes(event) && event.preventDefault(), { signal })
    this.element.addEventListener("drop", (event) => {
      if (!this.node.onDragDrop(event)) return
      event.preventDefault()
      event.stopPropagation()
    }, { signal })
  }

  async add(coming) {
    try {
      const found = await coming
      if (!found.files.length) return
      const { folder, words } = await add(found, this.asked(), (text) => this.say(text))
      if (folder !== this.folder.value.trim()) this.write(folder)
      this.say(words)
    } catch (error) {
      this.say(word("Not added: {why}", { why: error.message }), true)
    }
  }
}

function button(label) {
  return element("button", { type: "button" }, label)
}

/** The front end keeps these for good, with all that their functions can see: that is to be no node. */
function options() {
  return {
    serialize: false, hideOnZoom: false, margin: MARGIN, getMinHeight: () => HEIGHT + 2 * MARGIN,
    getMaxHeight: () => HEIGHT + 2 * MARGIN, getValue: () => "", setValue: () => {},
  }
}
