// Captions from a workflow of the person's own: it is run once for each picture, and its text is taken from the
// server's history. What makes the text is no matter of ours.

import { api } from "../../../../scripts/api.js"
import { app } from "../../../../scripts/app.js"
import { word } from "../page/words.js"
import { Refusal } from "./server.js"

const CLIENT = "lora_loom_captions" // so that no window shows these runs on a workflow of its own
const OURS = "lora_loom_caption" // id of the node that shows the text
const PAUSE = 300 // ms between two questions whether a run has ended

/** The workflow on screen in the API format. */
export async function onScreen() {
  return (await app.graphToPrompt()).output
}

/** The names of saved workflows. */
export async function saved() {
  const answer = await api.fetchApi("/userdata?dir=workflows&recurse=true&split=false")
  return answer.ok ? (await answer.json()).filter((name) => name.endsWith(".json")).sort() : []
}

export async function opened(name) {
  const answer = await api.fetchApi(`/userdata/${encodeURIComponent(`workflows/${name}`)}`)
  if (!answer.ok) throw new Refusal(word("{name} cannot be read ({status})", { name, status: answer.status }))
  return read(await answer.text())
}

/** A workflow file of either format, in the API format. Raises Refusal. */
export async function read(text) {
  let found
  try {
    found = JSON.parse(text)
  } catch {
    throw new Refusal(word("this is not JSON; choose a workflow that was saved or exported by ComfyUI"))
  }
  if (Array.isArray(found?.nodes)) return converted(found)
  const nodes = Object.values(found ?? {})
  if (nodes.length && nodes.every((node) => node?.class_type && node.inputs)) return found
  throw new Refusal(word("this is not a workflow; choose one that was saved or exported by ComfyUI"))
}

/** By a graph of its own, that is never shown. */
async function converted(workflow) {
  const graph = new app.rootGraph.constructor()
  try {
    graph.configure(workflow)
    return (await app.graphToPrompt(graph)).output
  } finally {
    graph.clear()
  }
}

/**
 * Where a picture goes in and where text may come out: `{ image, texts: [{ node, slot, label }] }`, the most likely text
 * first. Raises Refusal with what is missing.
 */
export async function ends(prompt) {
  const images = Object.keys(prompt).filter((id) => prompt[id].class_type === "LoadImage")
  if (images.length !== 1) {
    const many = word("the workflow has {n} Load Image nodes; it needs exactly one, for the picture", { n: images.length })
    const none = word("the workflow has no Load Image node; it needs exactly one, for the picture")
    throw new Refusal(images.length ? many : none)
  }
  const behind = Object.keys(prompt).filter((id) => id !== images[0] && before(prompt, id).has(images[0]))
  const found = []
  for (const node of behind) {
    const { output = [], output_name: names = [], display_name: title } = await definition(prompt[node].class_type)
    output.forEach((type, slot) => {
      const label = `${prompt[node]._meta?.title ?? title ?? prompt[node].class_type}: ${names[slot] ?? type}`
      if (type === "STRING") found.push({ node, slot, label, depth: before(prompt, node).size })
    })
  }
  if (!found.length) {
    throw new Refusal(word("no node behind Load Image gives a text; connect a node that describes pictures"))
  }
  return { image: images[0], texts: found.sort((a, b) => b.depth - a.depth) }
}

/** The text that the workflow gives for a picture, by its name below input. Raises Refusal; `stop` is looked at. */
export async function caption(prompt, { image, text }, picture, stop) {
  const id = await queue(asked(prompt, image, text, picture))
  for (;;) {
    if (stop()) return cancel(id)
    const answer = await api.fetchApi(`/history/${id}`)
    const entry = answer.ok ? (await answer.json())[id] : undefined
    if (entry) return told(entry)
    await new Promise((then) => setTimeout(then, PAUSE))
  }
}

/** The nodes that the text needs, with the picture in its place, and one of ours that shows the text. */
function asked(prompt, image, { node, slot }, picture) {
  const needed = before(prompt, node)
  const part = Object.fromEntries(Object.entries(prompt).filter(([id]) => needed.has(id)))
  part[image] = { ...prompt[image], inputs: { ...prompt[image].inputs, image: picture } }
  return { ...part, [OURS]: { class_type: "PreviewAny", inputs: { source: [node, slot] } } }
}

async function queue(prompt) {
  const answer = await post("/prompt", { prompt, client_id: CLIENT })
  const found = await answer.json()
  if (answer.ok && !Object.keys(found.node_errors ?? {}).length) return found.prompt_id
  const [first] = Object.values(found.node_errors ?? {})
  const { message, details } = first?.errors?.[0] ?? found.error ?? { message: word("the server refused the workflow") }
  throw new Refusal([message, details].filter(Boolean).join(": "))
}

function told({ status, outputs }) {
  const failed = status?.messages?.find(([kind]) => kind === "execution_error")?.[1]
  if (failed) throw new Refusal(`${failed.node_type}: ${failed.exception_message.trim()}`)
  const text = outputs?.[OURS]?.text?.[0]
  if (typeof text !== "string") throw new Refusal(word("the workflow gave no text"))
  return text.trim()
}

async function cancel(id) {
  await post("/queue", { delete: [id] })
  await post("/interrupt", { prompt_id: id })
}

function post(address, body) {
  return api.fetchApi(address, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) })
}

/** A node and all that it depends on. */
function before(prompt, id, found = new Set()) {
  if (found.has(id) || !prompt[id]) return found
  found.add(id)
  for (const value of Object.values(prompt[id].inputs)) if (Array.isArray(value)) before(prompt, String(value[0]), found)
  return found
}

async function definition(type) {
  const answer = await api.fetchApi(`/object_info/${encodeURIComponent(type)}`)
  const found = answer.ok ? (await answer.json())[type] : undefined
  if (!found) throw new Refusal(word("the node {type} is not installed", { type }))
  return found
}
