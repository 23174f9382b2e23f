// Numbers whose 0 is no number: the field shows the word for it, and holds 0.

import { app } from "../../../../scripts/app.js"
import { phrase, word } from "../page/words.js"

const OFF = phrase("off")
const OWN = phrase("auto: usual value")
const LAST = phrase("at the end")
const FREE = phrase("no limit")
const SAME = phrase("auto: training")
export const WORDS = {
  LoraLoom_TrainLora: {
    rank: phrase("auto, mostly 16"), alpha: phrase("auto: as rank"), learning_rate: phrase("auto, mostly 1e-4"),
    steps: phrase("auto: by pictures"),
    preservation: OFF, text_rank: OFF, text_learning_rate: phrase("auto: half"), max_grad_norm: OFF, save_every: LAST,
  },
  LoraLoom_MergeLora: { rank: phrase("exact sum"), size_mb: FREE, density: OWN },
  LoraLoom_ResizeLora: { rank: FREE, size_mb: FREE, ratio: FREE, conv_rank: phrase("as rank") },
  LoraLoom_AverageSteps: { from_step: phrase("the last half"), decay: phrase("plain mean") },
  LoraLoom_ConvertLora: { rank: phrase("auto: exact") },
  LoraLoom_Layers: { rank_dropout: OFF, layer_dropout: OFF, max_norm: OFF },
  LoraLoom_Objective: { noise_offset: OFF },
  LoraLoom_Optimizer: { weight_decay: OFF, beta1: OWN, beta2: OWN, eps: OWN, max_grad_norm: OFF, ema_decay: OFF },
  LoraLoom_Previews: { every: LAST, width: SAME, height: SAME },
}

/** The inputs that decide what the automatic ones among them stand for, beside what is connected. */
export const DECIDE = [
  "rank", "alpha", "learning_rate", "text_rank", "text_learning_rate", "targets", "timesteps", "continue_from",
]

const chosen = new WeakMap() // by node: what its automatic inputs stand for

/** On the canvas, where a widget of the front end tells what it shows. */
export function wordsForZeros(node) {
  for (const name of Object.keys(WORDS[node.comfyClass] ?? {})) {
    const widget = node.widgets.find((each) => each.name === name)
    const number = () => Reflect.get(Object.getPrototypeOf(widget), "_displayValue", widget)
    const shown = () => (widget.value === 0 && !widget.computedDisabled ? wordOf(node, name) : number())
    Object.defineProperty(widget, "_displayValue", { get: shown, configurable: true })
  }
}

/** What was chosen in a run, by name; undefined when that is not known. */
export function showChosen(node, values) {
  if (chosen.get(node) === values) return
  chosen.set(node, values)
  restyle()
}

function wordOf(node, name) {
  const value = chosen.get(node)?.[name]
  return value ? word("auto: {value}", { value }) : word(WORDS[node.comfyClass][name])
}

const sheet = new CSSStyleSheet()

/** In Nodes 2.0, whose fields can be told apart only by the id of the node on screen and their names. */
export function restyle() {
  restyle.due ??= requestAnimationFrame(() => {
    restyle.due = undefined
    sheet.replaceSync((app.canvas?.graph?.nodes ?? []).flatMap(rules).join("\n"))
  })
}

/** Once the canvas is there. */
export function keepStyled() {
  document.adoptedStyleSheets.push(sheet)
  app.canvas.canvas.addEventListener("litegraph:set-graph", restyle)
}

function rules(node) {
  return Object.keys(WORDS[node.comfyClass] ?? {}).flatMap((name) => {
    const field = `[data-node-id="${node.id}"] .lg-node-widget [aria-label="${name}"]`
    const zero = 'input[aria-valuenow="0"]:not(:focus, :disabled)'
    return [
      `${field} ${zero} { color: transparent }`,
      `${field} :has(> ${zero})::after { content: ${JSON.stringify(wordOf(node, name))}; ${STYLE} }`,
    ]
  })
}

const STYLE =
  "position: absolute; inset: 0; padding: 4px; overflow: hidden; text-overflow: ellipsis; white-space: nowrap;" +
  " pointer-events: none; line-height: 16px; color: var(--component-node-foreground-secondary, inherit)"
