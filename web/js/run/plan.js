// What a run would be, in words: the recipe, the pictures, and the memory. What is not known is not said.

import { valueOf } from "../page/sources.js"
import { phrase, word } from "../page/words.js"
import { dataSets, drawnBy, isConnected, learnsOther } from "./before.js"

const GB = 2 ** 30
const SETTINGS = { // that auto may choose, beside the targets
  rank: phrase("rank {value}"), alpha: phrase("alpha {value}"), learning_rate: phrase("learning rate {value}"),
}
const FEW = 20 // times that a picture is seen
const LAYERS = {
  "attention": phrase("attention layers"), "attention+mlp": phrase("attention and feed-forward layers"),
  "all-linear": phrase("all linear layers"), "linear+conv": phrase("linear and convolution layers"),
}

/** Lines [label, text, {warn?, more?}] about a node, by what the server answered; `more` is for who points at it. */
export function planOf(node, answer) {
  return [recipe(node, answer), ...pictures(node, answer), memory(node, answer)].filter(Boolean)
}

function recipe(node, { family, values, automatic, evidence }) {
  if (!family) return [word("Recipe"), word("auto is chosen for the model when the run starts"), { dim: true }]
  const names = [...Object.keys(SETTINGS), "targets"]
  const said = (name) => (name === "targets" ? word(LAYERS[values.targets]) : word(SETTINGS[name], { value: values[name] }))
  const told = (auto) => names.filter((name) => automatic.includes(name) === auto).map(said).join(", ")
  const own = told(false) && word("your own: {settings}", { settings: told(false) })
  const auto = told(true) && `${family}: ${told(true)}`
  return [word("Recipe"), [auto, own].filter(Boolean).join("; "), { more: `${values.timesteps}. ${evidence}` }]
}

/** Counts, how often each is seen, and a size that does not suit the model. */
function pictures(node, { folders, family, resolution }) {
  const [sets, slider] = [dataSets(node), drawnBy(node)]
  if (slider) {
    const count = valueOf(slider, "pictures")
    return [[word("Pictures"), word("{count}, drawn by the base model", { count })], seen(node, count)]
  }
  if (!sets.length) return [[word("Pictures"), word("connect a LoRA Dataset"), { warn: true }]]
  if (folders.some(({ fault }) => fault)) {
    return [[word("Pictures"), word("the folder is not there, or has no pictures that can be read"), { warn: true }]]
  }
  if (sets.some(isConnected)) return [[word("Pictures"), word("from other nodes, counted when the run starts"), { dim: true }]]
  const sum = (name) => folders.reduce((total, each) => total + each[name], 0)
  const [captioned, bare, left] = [sum("captioned"), sum("bare"), sum("left_out")]
  const lines = [[word("Pictures"), counted(captioned, bare, left), { warn: bare > 0 || left > 0 }]]
  if (captioned + bare) lines.push(seen(node, (captioned + bare) / (learnsOther(node) ? 2 : 1)))
  const small = Math.min(...sets.map((set) => valueOf(set, "resolution")))
  if (family && small < 0.75 * resolution) {
    const usual = word("{small} px, where {family} is usually trained at {resolution}", { small, family, resolution })
    lines.push([word("Size"), usual, { warn: true }])
  }
  return lines
}

function counted(captioned, bare, left) {
  const all = captioned + bare
  const parts = []
  if (bare && captioned) parts.push(word("{count} with captions", { count: captioned }), word("{count} with the trigger alone", { count: bare }))
  else if (all) parts.push(bare ? word("all with the trigger alone") : word("all with captions"))
  if (left) parts.push(word("{count} left out, without caption and trigger", { count: left }))
  return `${all + left}: ${parts.join(", ")}`
}

function seen(node, count) {
  const [steps, batch, accumulation] = ["steps", "batch_size", "accumulation"].map((name) => valueOf(node, name))
  if (steps === 0) return [word("Seen"), word("as often as auto finds right for the pictures")]
  const times = steps * batch * accumulation / count
  const shown = times < 10 ? Math.round(times * 10) / 10 : Math.round(times)
  const seen = shown === 1 ? word("each about 1 time") : word("each about {count} times", { count: shown })
  const few = times < FEW
  return [word("Seen"), few ? word("{seen}; 50 to 100 is a usual start", { seen }) : seen, { warn: few }]
}

function memory(node, { memory: { free, ram, weights, needed, of } }) {
  const size = gb(free)
  const room = ram ? word("{size} GB of RAM free", { size }) : word("{size} GB free", { size })
  if (!needed) return [word("Memory"), unmeasured(weights, room), { dim: true }]
  const [told, warn] = [{ needed: gb(needed), room }, needed > free]
  if (same(node, of)) return [word("Memory"), warn ? lacking(node, told) : word("needs {needed} of {room}, as last time", told), { warn }]
  const last = word(
    "the last run of this model needed {needed} GB at {resolution} px, batch {batch_size}, rank {rank}; {room}", { ...of, ...told })
  return [word("Memory"), last, { warn }]
}

function unmeasured(weights, room) {
  if (weights <= 0.005 * GB) return word("{room}; the rest is known when the run starts", { room })
  return word("{weights} GB of weights, {room}; the rest is known when the run starts", { weights: gb(weights), room })
}

function lacking(node, told) {
  const auto = valueOf(node, "memory") === "auto"
  return auto ? word("needs {needed} but only {room}, as last time: auto will offload", told)
    : word("needs {needed} but only {room}, as last time: lower batch_size or resolution", told)
}

/** Whether what decides the memory is as it was in the run that is on record. */
function same(node, of) {
  const sizes = dataSets(node).map((set) => valueOf(set, "resolution"))
  const own = ["batch_size", "gradient_checkpointing", "offload", "text_rank"]
  const auto = { rank: 0, targets: "auto" }
  return Math.max(...sizes) === of.resolution && own.every((name) => of[name] === valueOf(node, name)) &&
    Object.keys(auto).every((name) => [auto[name], of[name]].includes(valueOf(node, name)))
}

function gb(size) {
  const value = size / GB
  return value >= 10 ? String(Math.round(value)) : value >= 0.1 ? value.toFixed(1) : value.toPrecision(1)
}
