// The list of folders that hold pictures, below ComfyUI's input and datasets folders.

import { dialogOf, openDialog } from "../page/dialog.js"
import { element } from "../page/dom.js"
import { word } from "../page/words.js"
import { folders } from "./server.js"
import { pictures as counted } from "./words.js"

const SHOWN = 500

/** The folder that was chosen, or null. The list opens at `beside`. */
export function chooseFolder(current, beside) {
  return new Promise((resolve) => new Folders(current, beside, resolve).open())
}

class Folders {
  constructor(current, beside, resolve) {
    this.current = this.selected = current
    this.beside = beside
    this.resolve = resolve
    this.all = []
    this.search = element("input", {
      type: "search", className: "loom-set-search", placeholder: word("Search folders"), autocomplete: "off", spellcheck: false,
      role: "combobox", "aria-label": word("Search folders"), "aria-expanded": "true", "aria-controls": "loom-folder-list",
    })
    this.list = element("div",
      { className: "loom-set-options", id: "loom-folder-list", role: "listbox", "aria-label": word("Folders") })
    this.note = element("div", { className: "loom-set-empty", role: "status" }, word("Looking for folders"))
    const find = element("div", { className: "loom-set-find" }, this.search)
    this.dialog = dialogOf("loom-set-folders", word("Choose a folder"), [find, this.list, this.note], { closed: () => this.resolve(null) })
    this.search.addEventListener("input", () => this.filter())
    this.dialog.addEventListener("keydown", (event) => this.key(event))
  }

  async open() {
    openDialog(this.dialog)
    this.place()
    this.search.focus()
    try {
      const { folders: found, whole } = await folders()
      this.all = found
      this.whole = whole
    } catch (error) {
      this.fault = error.message
    }
    this.filter()
    this.place()
  }

  /** Closing it gives the focus back to where it was, and tells of itself again. */
  close(folder) {
    this.resolve(folder)
    this.dialog.close()
  }

  /** Below the button where there is room, else above it, and always in sight. */
  place() {
    const { left, top, bottom } = this.beside.getBoundingClientRect()
    const { offsetWidth, offsetHeight } = this.dialog
    const below = bottom + 4 + offsetHeight <= innerHeight ? bottom + 4 : top - 4 - offsetHeight
    this.dialog.style.left = `${Math.max(8, Math.min(left, innerWidth - offsetWidth - 8))}px`
    this.dialog.style.top = `${Math.max(8, Math.min(below, innerHeight - offsetHeight - 8))}px`
  }

  filter() {
    const searched = this.search.value.toLowerCase().split(/\s+/).filter(Boolean)
    const found = this.all.filter(({ name }) => searched.every((each) => name.toLowerCase().includes(each)))
    this.found = found.slice(0, SHOWN)
    if (!this.found.some(({ name }) => name === this.selected)) this.selected = this.found[0]?.name
    this.list.replaceChildren(...this.found.map((folder, index) => this.option(folder, index)))
    this.note.textContent = this.fault ?? this.words(found.length)
    this.note.hidden = !this.note.textContent
    this.select(this.selected)
  }

  words(count) {
    if (!this.all.length) return word("No folder below input or datasets has pictures. Drop some on the node.")
    if (!count) return word("Nothing found.")
    if (count > SHOWN) return word("{n} of {count} are shown: search for one", { n: SHOWN, count })
    if (this.whole) return ""
    return word("There are too many files to look at all folders. Write the name of one that is not listed.")
  }

  option({ name, pictures }, index) {
    const cut = name.lastIndexOf("/") + 1
    const span = (className, ...children) => element("span", { className }, ...children)
    const made = element("div",
      { className: "loom-set-option", id: `loom-folder-${index}`, role: "option", title: name },
      span("", span("loom-set-folder", name.slice(0, cut)), span("loom-set-bare", name.slice(cut))),
      span("loom-set-dim loom-set-pictures-in", counted(pictures)))
    made.classList.toggle("loom-set-current", name === this.current)
    made.addEventListener("pointermove", () => name !== this.selected && this.select(name))
    made.addEventListener("click", () => this.close(name))
    return made
  }

  select(name) {
    this.selected = name
    const at = this.found.findIndex((folder) => folder.name === name)
    ;[...this.list.children].forEach((option, index) => option.setAttribute("aria-selected", String(index === at)))
    this.search.setAttribute("aria-activedescendant", at < 0 ? "" : `loom-folder-${at}`)
    this.list.children[at]?.scrollIntoView({ block: "nearest" })
  }

  key(event) {
    const step = { ArrowDown: 1, ArrowUp: -1, PageDown: 8, PageUp: -8 }[event.key]
    if (step) {
      event.preventDefault()
      const at = this.found.findIndex(({ name }) => name === this.selected) + step
      this.select(this.found[Math.max(0, Math.min(this.found.length - 1, at))]?.name)
    } else if (event.key === "Escape" || (event.key === "Enter" && this.selected)) {
      event.preventDefault()
      this.close(event.key === "Enter" ? this.selected : null)
    }
  }
}
