// The trainings that wait in ComfyUI's own queue.

import { api } from "../../../../scripts/api.js"
import { word } from "../page/words.js"

const TRAIN = "LoraLoom_TrainLora"

/** What waits, in its order: the prompt and what its Train LoRA is to make. */
export async function waiting() {
  const answer = await api.fetchApi("/queue").catch(() => null)
  if (!answer?.ok) return []
  const { queue_pending: pending = [] } = await answer.json()
  const found = [...pending].sort(([a], [b]) => a - b)
  return found.flatMap(([, prompt, graph]) => Object.values(graph ?? {})
    .filter((node) => node?.class_type === TRAIN)
    .map(({ inputs = {} }) => ({ prompt, name: words(inputs.run_name), steps: number(inputs.steps) })))
}

/** Calls `then` when the queue may be another one, until the returned function is called. */
export function onQueue(then) {
  const kinds = ["status", "promptQueued"]
  for (const kind of kinds) api.addEventListener(kind, then)
  return () => kinds.forEach((kind) => api.removeEventListener(kind, then))
}

function words(value) {
  return typeof value === "string" && value.trim() ? value : word("Train LoRA")
}

function number(value) {
  return typeof value === "number" && value > 0 ? value : null
}
