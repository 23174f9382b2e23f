// What a run would be, asked of the server before it is queued: the question that a Train LoRA stands for.

import { api } from "../../../../scripts/api.js"
import { fileBehind, sourcesOfType, valueOf } from "../page/sources.js"

const DATASET = "LORALOOM_DATASET"
const MOST = 16 // data sets, as the server counts them
const OWN = ["rank", "alpha", "learning_rate", "targets"]
const QUIET = "quiet" // which decides the learning rate of auto
const SLIDER = "LoraLoom_Slider"
const OTHER = ["LoraLoom_PreferencePairs", SLIDER] // of which a run learns anything but pictures

/** The question about a node, as the query of a request. */
export function questionOf(node) {
  const query = new URLSearchParams()
  const { folder, name } = fileBehind(node) ?? {}
  if (typeof name === "string") for (const [key, value] of [["kind", folder], ["model", name]]) query.append(key, value)
  for (const name of OWN) query.append(name, valueOf(node, name) ?? 0)
  query.append(QUIET, valueOf(node, QUIET) ?? "off")
  const objective = sourcesOfType(node, "LORALOOM_OBJECTIVE")[0] ?? node
  for (const name of ["timesteps", "shift"]) query.append(name, valueOf(objective, name))
  const optimizer = sourcesOfType(node, "LORALOOM_OPTIMIZER")[0]
  if (optimizer) query.append("optimizer", valueOf(optimizer, "optimizer"))
  if (learnsOther(node)) query.append("learns", "other")
  for (const set of readable(node)) {
    for (const name of ["folder", "trigger", "masks"]) query.append(name, valueOf(set, name) ?? "")
  }
  return query.toString()
}

export async function ask(question) {
  const answer = await api.fetchApi(`/lora_loom/before?${question}`).catch(() => null)
  return answer?.ok ? answer.json() : null
}

/** The data sets of a node, through those that are combined. */
export function dataSets(node) {
  return behind(node).filter((each) => each.comfyClass === "LoraLoom_Dataset")
}

/** Whether a run learns from pairs of pictures or of prompts. */
export function learnsOther(node) {
  return behind(node).some((each) => OTHER.includes(each.comfyClass))
}

/** The LoRA Slider whose pictures the base model draws, where a node learns from one. */
export function drawnBy(node) {
  return dataSets(node).length ? undefined : behind(node).find((each) => each.comfyClass === SLIDER)
}

/** All nodes that the data set of a node passes through. */
function behind(node, found = new Set()) {
  for (const each of sourcesOfType(node, DATASET)) {
    if (found.has(each) || found.size > 2 * MOST) continue
    found.add(each)
    behind(each, found)
  }
  return [...found]
}

/** Whether a data set is of pictures that other nodes make, which nobody can count before they are made. */
export function isConnected(set) {
  return set.inputs?.some((input) => ["images", "folder"].includes(input.name) && input.link != null)
}

function readable(node) {
  return dataSets(node).filter((set) => !isConnected(set)).slice(0, MOST)
}
