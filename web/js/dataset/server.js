// What the page of pictures and captions asks the server.

import { api } from "../../../../scripts/api.js"
import { word } from "../page/words.js"

const MOST = 200 // captions or names in a request, so that each is answered soon

/** Raised with the words of the server, for a person to read. */
export class Refusal extends Error {}

export const folders = () => read("folders", {})
export const pictures = (asked) => read("pictures", asked)
export const look = (asked, names) => write("look", { ...asked, names })
export const copies = (asked) => write("copies", asked)

/** Where ComfyUI's upload is to put pictures for a folder, or for a new one that is called as proposed. */
export const place = (folder, name) => read("place", { folder, name })

/** Writes captions, each with `was`, by which the server sees whether it has changed meanwhile. */
export const captions = (asked, edits) => inParts(edits, (part) => write("captions", { ...asked, edits: part }))
export const takeOut = (asked, names) => inParts(names, (part) => write("take_out", { ...asked, names: part }))
export const putBack = (asked, taken) =>
  inParts(Object.entries(taken), (part) => write("put_back", { ...asked, taken: Object.fromEntries(part) }))

/** Makes the mask of a picture from a file of the mask editor's; with the `mark`, `maskBack` undoes it, or itself. */
export const mask = (asked, name, painted) => write("mask", { ...asked, name, painted })
export const maskBack = (asked, name, mark) => write("mask_back", { ...asked, name, mark })

/** What the mask editor is shown. It wants a file name, and adds which channel it asks for. */
export function canvasUrl({ folder, masks }, { name, version, mask }) {
  const fields = { folder, masks, name, version: `${version} ${mask}`, filename: "picture" }
  return api.apiURL(`/lora_loom/dataset/canvas?${new URLSearchParams(fields)}`)
}

export function thumbnailUrl({ folder, masks }, { name, version }, side, mask = "") {
  return api.apiURL(`/lora_loom/dataset/thumbnail?${new URLSearchParams({ folder, masks, name, version, side, mask })}`)
}

/** Puts a file into a folder below ComfyUI's input folder; the name that it has there. */
export async function upload(file, subfolder) {
  const body = new FormData()
  body.append("image", file, file.name)
  body.append("subfolder", subfolder)
  body.append("type", "input")
  const answer = await api.fetchApi("/upload/image", { method: "POST", body })
  if (!answer.ok) throw new Refusal(word("the server did not take it ({status})", { status: answer.status }))
  return (await answer.json()).name
}

function read(what, fields) {
  return ask(`/lora_loom/dataset/${what}?${new URLSearchParams(fields)}`)
}

function write(what, fields) {
  const headers = { "Content-Type": "application/json" }
  return ask(`/lora_loom/dataset/${what}`, { method: "POST", headers, body: JSON.stringify(fields) })
}

async function ask(address, options) {
  const answer = await api.fetchApi(address, options)
  if (!answer.ok) throw new Refusal(word("the server did not answer ({status}); try again", { status: answer.status }))
  const found = await answer.json()
  if (found.problem) throw new Refusal(found.problem)
  return found
}

/** The answers to all parts of a list as one: lists and records in them are joined. */
async function inParts(list, send) {
  const all = {}
  for (let at = 0; at < list.length; at += MOST) {
    for (const [key, value] of Object.entries(await send(list.slice(at, at + MOST)))) {
      if (Array.isArray(value)) all[key] = [...(all[key] ?? []), ...value]
      else if (value && typeof value === "object") all[key] = { ...all[key], ...value }
      else all[key] = value
    }
  }
  return all
}
