// Two pictures over each other, parted by a line that is dragged or moved with the arrow keys.

import { element } from "../page/dom.js"
import { word } from "../page/words.js"

const KEYS = { ArrowLeft: -2, ArrowRight: 2, PageDown: -10, PageUp: 10, Home: -100, End: 100 } // parts of a hundred

export class Wipe {
  /** closed: called when it is closed. */
  constructor(closed) {
    this.closed = closed
    this.images = ["A", "B"].map((name) => element("img", { className: `loom-wipe-${name}`, draggable: false }))
    this.names = ["A", "B"].map((name) => element("span", { className: `loom-wipe-name loom-wipe-name-${name}` }))
    this.line = element("div", {
      className: "loom-wipe-line", role: "slider", tabIndex: 0, "aria-label": word("Where the pictures are parted"),
      "aria-valuemin": "0", "aria-valuemax": "100",
    })
    this.stage = element("div", { className: "loom-wipe-stage" }, ...this.images, ...this.names, this.line)
    this.large = button(word("Open large"), () => this.enlarge())
    this.buttons = element("div", { className: "loom-wipe-buttons" },
      button(word("Swap"), () => this.show(this.pair[1], this.pair[0])), this.large, button(word("Close"), () => this.close()))
    this.inside = element("div", { className: "loom-wipe-inside" }, this.stage, this.buttons)
    this.dialog = element("dialog", { className: "loom loom-wipe-dialog", "aria-label": word("Two previews") })
    this.element = element("div", { className: "loom-wipe", hidden: true }, this.inside, this.dialog)
    this.images[0].addEventListener("load", ({ target }) =>
      this.stage.style.setProperty("--shape", target.naturalWidth / target.naturalHeight))
    this.stage.addEventListener("pointerdown", (event) => this.grab(event))
    this.stage.addEventListener("pointermove", (event) => {
      if (this.stage.hasPointerCapture(event.pointerId)) this.drag(event)
    })
    this.inside.addEventListener("keydown", (event) => this.key(event))
    this.dialog.addEventListener("close", () => this.shrink())
  }

  /** Shows A at the left of the line and B at its right. */
  show(a, b) {
    this.pair = [a, b]
    this.pair.forEach(({ src, name, words }, at) => {
      Object.assign(this.images[at], { src, alt: `${"AB"[at]}: ${words}` })
      this.names[at].textContent = `${"AB"[at]} ${name}`
    })
    const opens = this.element.hidden
    this.element.hidden = false
    this.part(opens ? 50 : this.at)
    if (opens) this.line.focus()
  }

  hide() {
    if (this.dialog.open) this.dialog.close()
    this.element.hidden = true
  }

  close() {
    this.hide()
    this.closed()
  }

  part(at) {
    this.at = Math.max(0, Math.min(100, at))
    this.stage.style.setProperty("--at", `${this.at}%`)
    this.line.setAttribute("aria-valuenow", Math.round(this.at))
    this.line.setAttribute("aria-valuetext", word("{share} % A, the rest B", { share: Math.round(this.at) }))
  }

  grab(event) {
    event.preventDefault()
    this.line.focus()
    this.stage.setPointerCapture(event.pointerId)
    this.drag(event)
  }

  drag(event) {
    const { left, width } = this.stage.getBoundingClientRect()
    this.part(100 * (event.clientX - left) / width)
  }

  key(event) {
    const by = event.target === this.line ? KEYS[event.key] : undefined
    if (by === undefined && event.key !== "Escape") return
    event.preventDefault()
    event.stopPropagation()
    if (by !== undefined) this.part(this.at + by * (event.shiftKey ? 5 : 1))
    else if (this.dialog.open) this.dialog.close()
    else this.close()
  }

  enlarge() {
    if (this.dialog.open) return this.dialog.close()
    this.dialog.append(this.inside)
    this.dialog.showModal()
    this.large.textContent = word("Back to the panel")
    this.line.focus()
  }

  shrink() {
    this.element.prepend(this.inside)
    this.large.textContent = word("Open large")
    this.line.focus()
  }
}

function button(text, act) {
  const made = element("button", { type: "button", className: "loom-runs-button" }, text)
  made.addEventListener("click", act)
  return made
}
