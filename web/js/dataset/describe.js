// The dialog in which captions are made by a workflow of the person's own.

import { dialogOf, openDialog } from "../page/dialog.js"
import { element } from "../page/dom.js"
import { phrase, word } from "../page/words.js"
import { caption, ends, onScreen, opened, read, saved } from "./captioning.js"
import { button, rename, select } from "./controls.js"
import { place } from "./server.js"
import { captions, pictures as counted } from "./words.js"

const SCREEN = "" // values of the list of workflows
const FILE = "\n"
const ABOUT = phrase("Runs a workflow once for each picture and takes its text as the caption. It needs one Load Image node, and behind it a node that gives text: any captioning node you have.")
const KEEP = {
  empty: phrase("Only pictures without a caption"),
  replace: phrase("All of them, replacing captions"),
  behind: phrase("All of them, adding behind captions"),
}

/** Makes captions for pictures; those that were made, `[{ name, text }]`, when it is closed. */
export function describe(pictures, asked) {
  return new Promise((resolve) => new Describe(pictures, asked, resolve).open())
}

class Describe {
  constructor(pictures, asked, resolve) {
    this.pictures = pictures
    this.asked = asked
    this.resolve = resolve
    this.made = []
    this.stopped = this.running = false
    this.workflow = select(word("Workflow"), [[SCREEN, word("The workflow on screen")], [FILE, word("A file\u2026")]])
    this.text = select(word("Text from"), [])
    this.keep = select(word("Which pictures"), Object.entries(KEEP).map(([value, label]) => [value, word(label)]))
    this.file = element("input", { type: "file", accept: ".json", "aria-label": word("Workflow file"), hidden: true })
    this.words = element("div", { className: "loom-set-status", role: "status" })
    this.start = button(word("Start"), () => this.run())
    this.ends = button(word("Close"), () => this.end())
    const name = word("Caption with a workflow")
    this.dialog = dialogOf("loom-set-page loom-set-describe", name, [
      element("h2", {}, name), element("p", {}, word(ABOUT)),
      row(word("Workflow"), this.workflow), this.file, row(word("Text from"), this.text), row(word("For"), this.keep),
      element("div", { className: "loom-set-page-foot" }, this.words, this.ends, this.start),
    ], { outside: false, closed: () => this.resolve(this.made) })
    this.listen()
  }

  listen() {
    this.workflow.addEventListener("change", () => this.look())
    this.file.addEventListener("change", () => this.look())
    this.keep.addEventListener("change", () => this.foresee())
    this.dialog.addEventListener("cancel", (event) => {
      event.preventDefault()
      this.end()
    })
  }

  async open() {
    openDialog(this.dialog)
    this.look()
    for (const name of await saved().catch(() => [])) {
      this.workflow.lastChild.before(element("option", { value: name }, name.replace(/\.json$/, "")))
    }
  }

  /** While it runs, stops after what was made so far; else closes. */
  end() {
    if (this.running) return (this.stopped = true)
    this.dialog.close()
  }

  chosen() {
    const all = this.keep.value !== "empty"
    return this.pictures.filter((picture) => !picture.fault && (all || !picture.caption))
  }

  foresee() {
    const { length } = this.chosen()
    this.start.disabled = !this.found || !length || this.running
    rename(this.start, word("Caption {pictures}", { pictures: counted(length) }))
  }

  async look() {
    const turn = (this.turn = {})
    this.found = undefined
    this.file.hidden = this.workflow.value !== FILE
    this.text.replaceChildren()
    this.foresee()
    this.say(word("Reading the workflow"))
    try {
      const prompt = await this.prompt()
      const found = prompt && { prompt, ...(await ends(prompt)) }
      if (turn === this.turn) this.take(found)
    } catch (error) {
      if (turn === this.turn) this.say(word("This workflow cannot be used: {why}.", { why: error.message }), true)
    }
  }

  take(found) {
    if (!found) return this.say(word("Choose a file that was saved or exported by ComfyUI."))
    this.found = found
    this.text.replaceChildren(...found.texts.map(({ label }, at) => element("option", { value: String(at) }, label)))
    this.say("")
    this.foresee()
  }

  async prompt() {
    if (this.workflow.value === SCREEN) return onScreen()
    if (this.workflow.value !== FILE) return opened(this.workflow.value)
    return this.file.files[0] && read(await this.file.files[0].text())
  }

  async run() {
    const pictures = this.chosen()
    this.stopped = false
    this.running = true
    rename(this.ends, word("Stop"))
    this.foresee()
    try {
      const { subfolder } = await place(this.asked.folder, "")
      for (const [at, picture] of pictures.entries()) {
        if (this.stopped) break
        this.say(word("{at} of {total}: {name}", { at: at + 1, total: pictures.length, name: picture.name }))
        await this.one(picture, subfolder)
      }
      this.running = false
      this.end()
    } catch (error) {
      this.running = false
      const stopped = word("Stopped: {why}", { why: error.message })
      const made = this.made.length ? `${word("{captions} made.", { captions: captions(this.made.length) })} ` : ""
      this.say(made + stopped, true)
      rename(this.ends, word("Close"))
      this.foresee()
    }
  }

  async one(picture, subfolder) {
    const { prompt, image, texts } = this.found
    const place = [subfolder, picture.name].filter((part) => part && part !== ".").join("/")
    const text = await caption(prompt, { image, text: texts[Number(this.text.value)] }, place, () => this.stopped)
    if (!text) return
    const behind = this.keep.value === "behind" && picture.caption
    this.made.push({ name: picture.name, text: behind ? `${picture.caption}, ${text}` : text })
  }

  say(words, problem = false) {
    this.words.textContent = this.words.title = words
    this.words.classList.toggle("loom-set-alert", problem)
  }
}

function row(label, field) {
  return element("label", {}, element("span", {}, label), field)
}
