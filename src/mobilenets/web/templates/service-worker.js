// Keeps the page for when there is no network, and lets it use threads where the server does not say that it may.
const NAME = `mobilenets ${registration.scope}:${ {{ version }} }`, FILES = {{ files }}, ON_USE = {{ on_use }};
const ISOLATED = {"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp", "Cross-Origin-Resource-Policy": "same-origin"};
// Named by their content, these never change.
const lasting = path => path.includes("?") || path.startsWith("onnxruntime-");

addEventListener("install", event => {
  skipWaiting();
  event.waitUntil(caches.open(NAME).then(cache => cache.addAll(FILES)));
});
addEventListener("activate", event => event.waitUntil((async () => {
  const ours = NAME.slice(0, NAME.lastIndexOf(":") + 1);
  await Promise.all((await caches.keys()).filter(name => name.startsWith(ours) && name !== NAME).map(name => caches.delete(name)));
  await clients.claim();
})()));
addEventListener("fetch", event => {
  const {scope} = registration, address = event.request.url.split("#")[0];
  const path = address.startsWith(scope) ? address.slice(scope.length).replace(/^index\.html$/, "") || "./" : null;
  if (event.request.method === "GET" && (FILES.includes(path) || ON_USE.includes(path))) event.respondWith(answer(path));
});

async function answer(path) {
  const cache = await caches.open(NAME), kept = await cache.match(path);
  if (kept && lasting(path)) return isolated(kept);
  try {
    const fresh = await fetch(path);
    if (fresh.ok) await cache.put(path, fresh.clone());
    return isolated(fresh);
  } catch (error) {
    if (kept) return isolated(kept);
    throw error;
  }
}
function isolated(response) {
  const headers = new Headers(response.headers);
  for (const [name, value] of Object.entries(ISOLATED)) headers.set(name, value);
  return new Response(response.body, {status: response.status, statusText: response.statusText, headers});
}
