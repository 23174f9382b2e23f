// What a run would be, in words: the recipe, the pictures, and the memory. What is not known is not said.

import { valueOf } from "../page/sources.js"
import { dataSets, isConnected } from "./before.js"

const GB = 2 ** 30
const WORDS = { rank: "rank", alpha: "alpha", learning_rate: "learning rate" } // of the inputs that auto may choose
const FEW = 20 // times that a picture is seen
const LAYERS = {
  "attention": "attention layers", "attention+mlp": "attention and feed-forward layers", "all-linear": "all linear layers",
  "linear+conv": "linear and convolution layers",
}

/** Lines [label, text, {warn?, more?}] about a node, by what the server answered; `more` is for who points at it. */
export function planOf(node, answer) {
  return [recipe(node, answer), ...pictures(node, answer), memory(node, answer)].filter(Boolean)
}

function recipe(node, { family, values, automatic, evidence }) {
  if (!family) return ["Recipe", "auto is chosen for the model when the run starts", { dim: true }]
  const names = [...Object.keys(WORDS), "targets"]
  const told = (auto) => names.filter((name) => automatic.includes(name) === auto)
    .map((name) => (name === "targets" ? LAYERS[values.targets] : `${WORDS[name]} ${values[name]}`)).join(", ")
  const own = told(false) && `your own: ${told(false)}`
  const auto = told(true) && `${family}: ${told(true)}`
  return ["Recipe", [auto, own].filter(Boolean).join("; "), { more: `${values.timesteps}. ${evidence}` }]
}

/** Counts, how often each is seen, and a size that does not suit the model. */
function pictures(node, { folders, family, resolution }) {
  const sets = dataSets(node)
  if (!sets.length) return [["Pictures", "connect a LoRA Dataset", { warn: true }]]
  if (folders.some(({ fault }) => fault)) {
    return [["Pictures", "the folder is not there, or has no pictures that can be read", { warn: true }]]
  }
  if (sets.some(isConnected)) return [["Pictures", "from other nodes, counted when the run starts", { dim: true }]]
  const sum = (name) => folders.reduce((total, each) => total + each[name], 0)
  const [captioned, bare, left] = [sum("captioned"), sum("bare"), sum("left_out")]
  const lines = [["Pictures", counted(captioned, bare, left), { warn: bare > 0 || left > 0 }]]
  if (captioned + bare) lines.push(seen(node, captioned + bare))
  const small = Math.min(...sets.map((set) => valueOf(set, "resolution")))
  if (family && small < 0.75 * resolution) {
    lines.push(["Size", `${small} px, where ${family} is usually trained at ${resolution}`, { warn: true }])
  }
  return lines
}

function counted(captioned, bare, left) {
  const all = captioned + bare
  const parts = []
  if (bare && captioned) parts.push(`${captioned} with captions`, `${bare} with the trigger alone`)
  else if (all) parts.push(bare ? "all with the trigger alone" : "all with captions")
  if (left) parts.push(`${left} left out, without caption and trigger`)
  return `${all + left}: ${parts.join(", ")}`
}

function seen(node, count) {
  const [steps, batch, accumulation] = ["steps", "batch_size", "accumulation"].map((name) => valueOf(node, name))
  const times = steps * batch * accumulation / count
  const shown = times < 10 ? Math.round(times * 10) / 10 : Math.round(times)
  const hint = times < FEW ? "; 50 to 100 is a usual start" : ""
  return ["Seen", `each about ${shown} time${shown === 1 ? "" : "s"}${hint}`, { warn: times < FEW }]
}

function memory(node, { memory: { free, ram, weights, needed, of } }) {
  const room = `${gb(free)} GB${ram ? " of RAM" : ""} free`
  if (!needed) {
    const known = weights > 0.005 * GB ? `${gb(weights)} GB of weights, ` : ""
    return ["Memory", `${known}${room}; the rest is known when the run starts`, { dim: true }]
  }
  const fits = needed <= free
  const verdict = fits ? `of ${room}` : `but only ${room}`
  if (same(node, of)) {
    const cure = fits ? "" : valueOf(node, "memory") === "auto" ? ": auto will offload" : ": lower batch_size or resolution"
    return ["Memory", `needs ${gb(needed)} ${verdict}, as last time${cure}`, { warn: !fits }]
  }
  const then = `at ${of.resolution} px, batch ${of.batch_size}, rank ${of.rank}`
  return ["Memory", `the last run of this model needed ${gb(needed)} GB ${then}; ${room}`, { warn: !fits }]
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
