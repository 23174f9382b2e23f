// What the buttons on Train LoRA's body do.

import { copy } from "../page/clipboard.js"
import { openRun } from "../runs/panel.js"
import { useStep } from "../runs/actions.js"
import { doing } from "../runs/ask.js"
import { pause } from "../runs/store.js"
import { openText } from "./report.js"
import { spoken, word } from "../page/words.js"

/** Does what a button is called, for a body. */
export function act(name, button, body) {
  ACTIONS[name](body, button)
}

const ACTIONS = {
  async pause({ run }, button) {
    const was = button.textContent
    button.disabled = true
    button.textContent = word("Pausing, saving its state")
    const done = await doing(word("{name} could not be paused", run), () => pause(run.id, run.prompt_id))
    if (done !== undefined) return
    button.disabled = false
    button.textContent = was
  },
  use: ({ run }) => useStep(run, run.kept ?? run.saved[run.saved.length - 1]),
  compare: ({ run }) => openRun(run.id),
  report: ({ run, details }) => openText(word("Report of {name}", run), spoken(details.found.report)),
  async folder({ run, view, element }) {
    const name = `output/lora_loom/${run.id}`
    view.say((await copy(name, element)) ? word("Copied: {text}", { text: name }) : name)
  },
  rate(body) {
    body.rated = !body.rated
    body.look()
  },
}
