// Stacks that a person keeps under names, in their own folder of ComfyUI's user data, as the text of their rows.

import { api } from "../../../../scripts/api.js"
import { button } from "../page/controls.js"
import { element } from "../page/dom.js"
import { popup } from "../page/popup.js"
import { isRow, parse } from "../page/rows.js"
import { phrase, word } from "../page/words.js"

const FILE = "lora_loom_stacks.json"
const VERSION = 1
const UNREADABLE = phrase("The saved stacks ({file} in the user folder) cannot be read; correct or remove the file.")

/** Shows them below a button, to load into an editor of rows, or to keep its rows. */
export function showSaved(at, editor) {
  new Saved(editor).open(at)
}

class Saved {
  constructor(editor) {
    this.editor = editor
    this.name = element("input", {
      type: "text", className: "loom-saved-name", placeholder: word("Name of this stack"), "aria-label": word("Name of this stack"),
      autocomplete: "off", spellcheck: false, maxLength: 100,
    })
    this.keep = button("loom-saved-keep", word("Save"), word("Save the rows under this name"), () => this.save())
    this.said = element("div", { className: "loom-row-said", role: "status" })
    this.list = element("div", { className: "loom-saved-list", role: "list", "aria-label": word("Saved stacks") })
    this.name.addEventListener("input", () => this.showKeep())
    this.name.addEventListener("keydown", (event) => event.key === "Enter" && !this.keep.disabled && this.save())
  }

  async open(at) {
    this.popup = popup({ className: "loom-saved", role: "dialog", "aria-label": word("Saved stacks") }, at,
      element("div", { className: "loom-saved-head" }, this.name, this.keep), this.said, this.list)
    this.name.focus()
    await this.change(() => {})
  }

  /** Reads what there is now, changes it, and writes it if it is another. Gives whether that went well. */
  async change(edit) {
    this.said.textContent = ""
    try {
      const stacks = await read()
      const before = JSON.stringify([...stacks])
      edit(stacks)
      if (JSON.stringify([...stacks]) !== before) await write(stacks)
      this.stacks = stacks
      this.show()
      return true
    } catch (error) {
      this.said.textContent = error.message
      return false
    }
  }

  async save() {
    const name = this.name.value.trim()
    if (!await this.change((stacks) => stacks.set(name, this.editor.text))) return
    this.name.value = ""
    this.showKeep()
  }

  show() {
    const names = [...this.stacks.keys()].sort((a, b) => a.localeCompare(b))
    const none = element("div", { className: "loom-empty" }, word("None yet: name these rows and save them."))
    this.list.replaceChildren(...(names.length ? names.map((name) => this.entry(name)) : [none]))
    this.showKeep()
  }

  showKeep() {
    const name = this.name.value.trim()
    this.keep.disabled = !name || !this.stacks || !this.editor.items.length
    this.keep.textContent = this.stacks?.has(name) ? word("Save over it") : word("Save")
  }

  entry(name) {
    const items = parse(this.stacks.get(name))
    const count = items.filter(isRow).length
    const use = (rows) => {
      this.popup.hidePopover()
      this.editor.replaceAll(rows)
    }
    let sure = false
    const drop = button("loom-saved-drop", "\u00d7", word("Delete {name}", { name }), () => {
      if (sure) this.change((stacks) => stacks.delete(name))
      sure = true
      drop.textContent = word("Delete?")
    })
    return element("div", { className: "loom-saved-entry", role: "listitem" },
      element("span", { className: "loom-saved-title", title: this.stacks.get(name) }, name),
      element("span", { className: "loom-dim" }, count === 1 ? word("1 LoRA") : word("{count} LoRAs", { count })),
      button("loom-saved-use", word("Load"), word("Load {name} in place of the rows", { name }), () => use(items)),
      button("loom-saved-use", word("Append"), word("Append {name} to the rows", { name }), () => use([...this.editor.items, ...items])),
      drop)
  }
}

/** Texts by name. Asks for the file only where it is: the browser would complain of one that is not. */
async function read() {
  const listed = await api.fetchApi("/userdata?dir=.")
  if (!listed.ok || !(await listed.json()).includes(FILE)) return new Map()
  const answer = await api.getUserData(FILE)
  const found = answer.ok ? await answer.json().catch(() => null) : null
  if (typeof found?.stacks !== "object" || found.stacks === null) throw new Error(word(UNREADABLE, { file: FILE }))
  return new Map(Object.entries(found.stacks).filter(([, text]) => typeof text === "string"))
}

async function write(stacks) {
  const content = { version: VERSION, stacks: Object.fromEntries(stacks) }
  const answer = await api.storeUserData(FILE, content, { overwrite: true, stringify: true, throwOnError: false })
  if (!answer.ok) throw new Error(word("ComfyUI did not take the file; nothing was saved."))
}
