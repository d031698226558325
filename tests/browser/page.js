// Reads arrays through zarrita.js, tries what other viewers do with fetch, and posts what it found
// to the server that it came from. Query: url, and array (a path) once per array.
import { FetchStore, get, open, root, slice } from "./zarrita.min.js";

async function checksum(data) {
  const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

async function readArray(store, path) {
  const array = await open(root(store).resolve(path), { kind: "array" });
  const whole = await get(array);
  const part = await get(array, [2, null, slice(1, 9)]);
  const chunk = await array.getChunk([0, 0, 0]);
  return {
    shape: array.shape,
    chunks: array.chunks,
    dtype: array.dtype,
    attributes: array.attrs,
    whole: await checksum(whole.data),
    part: { shape: part.shape, data: await checksum(part.data) },
    chunk: await checksum(chunk.data),
  };
}

async function answer(url, options = {}) {
  try {
    const response = await fetch(url, { cache: "no-store", ...options });
    const body = await response.arrayBuffer();
    return {
      status: response.status,
      size: body.byteLength,
      length: response.headers.get("Content-Length"),
      range: response.headers.get("Content-Range"),
      tag: response.headers.get("ETag"),
    };
  } catch (error) {
    return { refused: String(error) };
  }
}

async function main() {
  const query = new URLSearchParams(location.search);
  const url = query.get("url");
  const found = { arrays: {}, answers: {} };
  try {
    const store = new FetchStore(url);
    found.group = (await open(root(store), { kind: "group" })).attrs;
    for (const path of query.getAll("array")) found.arrays[path] = await readArray(store, path);
  } catch (error) {
    found.error = `${error}\n${error.stack}`;
  }
  const chunk = `${url}/${query.getAll("array")[0]}/c/0/0/0`;
  const { answers } = found;
  answers.chunk = await answer(chunk);
  answers.missing = await answer(`${chunk}0`);
  answers.head = await answer(chunk, { method: "HEAD" });
  answers.range = await answer(chunk, { headers: { Range: "bytes=8-23" } });
  answers.suffix = await answer(chunk, { headers: { Range: "bytes=-16" } });
  answers.unchanged = await answer(chunk, { headers: { "If-None-Match": answers.chunk.tag ?? "" } });
  answers.put = await answer(chunk, { method: "PUT", body: "x" });
  await fetch("/result", { method: "POST", body: JSON.stringify(found) });
}

main();
