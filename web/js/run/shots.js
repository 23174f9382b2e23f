// The newest previews of a run, small; pressed, one of them is large in a dialog, with those of the other steps.

import { openTitled } from "../page/dialog.js"
import { element } from "../page/dom.js"
import { previewUrl } from "../runs/store.js"
import { word } from "../page/words.js"

const MOST = 4 // that are shown at once
const SMALL = 192 // px that are asked for: twice what is shown
const LARGE = 1024
const KEYS = { ArrowLeft: ["step", -1], ArrowRight: ["step", 1], ArrowUp: ["number", -1], ArrowDown: ["number", 1] }

export class Shots {
  constructor() {
    this.element = element("div", { className: "loom-body-shots", role: "group", "aria-label": word("Previews") })
  }

  /** `steps` of which there are `pictures`; nothing where there are none. */
  show(id, steps, pictures) {
    const step = steps[steps.length - 1]
    const own = pictures.map((picture, number) => ({ ...picture, number })).filter(({ kind }) => kind === "lora")
    this.element.hidden = step === undefined || !own.length
    const key = JSON.stringify([id, step, own.length])
    if (this.element.hidden || key === this.key) return
    this.key = key
    const made = own.slice(0, MOST).map((picture, index) => {
      const label = word("step {step}: {prompt}", { step, prompt: picture.prompt })
      const image = element("img", { src: previewUrl(id, step, picture.number, SMALL), alt: "", draggable: false })
      const button = element("button", { type: "button", className: "loom-body-shot", title: label, "aria-label": label }, image)
      const rest = own.length - MOST
      if (index === MOST - 1 && rest) button.append(element("span", { className: "loom-body-more" }, `+${rest}`))
      button.addEventListener("click", () => large(id, steps, pictures, picture.number))
      return button
    })
    const focused = [...this.element.querySelectorAll("button")].indexOf(document.activeElement)
    this.element.replaceChildren(element("span", { className: "loom-body-shots-step" }, word("step {step}", { step })), ...made)
    made[focused]?.focus()
  }
}

/** One picture as large as the page allows; the arrow keys go to other steps and prompts. */
function large(id, steps, pictures, number) {
  const at = { step: steps.length - 1, number }
  const image = element("img", { className: "loom-body-large", alt: "" })
  const words = element("div", { className: "loom-body-words", role: "status" })
  const move = (name, by) => {
    const count = name === "step" ? steps.length : pictures.length
    at[name] = Math.max(0, Math.min(count - 1, at[name] + by))
    show()
  }
  const button = (text, label, name, by) => {
    const made = element("button", { type: "button", "aria-label": label, title: label }, text)
    made.addEventListener("click", () => move(name, by))
    return made
  }
  const show = () => {
    const { prompt, kind } = pictures[at.number]
    const what = kind === "base" ? word("without the LoRA") : word("step {step}", { step: steps[at.step] })
    image.src = previewUrl(id, steps[at.step], at.number, LARGE)
    image.alt = `${what}: ${prompt}`
    words.textContent = `${what} \u00b7 ${prompt}`
  }
  const foot = element("div", { className: "loom-body-foot" },
    button("\u2190", word("Earlier step"), "step", -1), button("\u2192", word("Later step"), "step", 1),
    button("\u2191", word("Picture before"), "number", -1), button("\u2193", word("Next picture"), "number", 1), words)
  const dialog = openTitled("loom-body-picture", word("Preview"), [image, foot])
  dialog.addEventListener("keydown", (event) => {
    if (!KEYS[event.key]) return
    event.preventDefault()
    move(...KEYS[event.key])
  })
  show()
}
