// Asking the service.

import { $ } from './words.js'

const KEY = 'sound-sentry-key'
const KEY_FORM = /^[\x21-\x7e]+$/ // what a header may hold; curly quotes or hidden characters come with copied text
const TRIES = 8 // for a request that the service has no room for
const PAUSE_SECONDS = 2
const OUTAGE_SECONDS = 300 // for which a job may be out of reach
const MIB = 2 ** 20

export class Problem extends Error {
  // `kind` and `status` are those of the service's answer; `waitSeconds` is how long it asks to wait.
  constructor(title, detail, { kind = null, status = null, waitSeconds = null } = {}) {
    super(detail)
    Object.assign(this, { title, kind, status, waitSeconds })
  }
}

// If the service asks for a key, the page asks the user once. The key stays in this tab, and only the service gets it.

let asking = null // the promise of a key, while the form for it is shown

function askForKey(refused) {
  $('key-refused').hidden = !refused
  asking ??= new Promise((resolve) => {
    $('access').hidden = false
    $('key').focus()
    $('access').onsubmit = (event) => {
      event.preventDefault()
      const key = $('key').value.trim()
      $('key').value = ''
      $('key-refused').hidden = KEY_FORM.test(key)
      if (!KEY_FORM.test(key)) return
      sessionStorage.setItem(KEY, key)
      $('access').hidden = true
      $('file').focus() // else the focus would be lost with the form
      asking = null
      resolve()
    }
  })
  return asking
}

export async function ask(path, options, read = (response) => response.json()) {
  const headers = { Accept: 'application/json', ...options?.headers }
  const key = sessionStorage.getItem(KEY)
  if (key) headers.Authorization = `Bearer ${key}`
  let response
  try {
    response = await fetch(path, { ...options, headers })
  } catch (error) {
    if (error.name === 'AbortError') throw error
    throw new Problem('No answer', 'The service cannot be reached, or closed the connection. Try again in a moment.')
  }
  if (key || response.status === 401) $('docs').hidden = true // a link sends no key
  // A key that may not even read /info is of no use here.
  if (response.status === 401 || (response.status === 403 && key && path === 'info')) {
    if (sessionStorage.getItem(KEY) === key) sessionStorage.removeItem(KEY)
    if (!sessionStorage.getItem(KEY)) await askForKey(key !== null)
    return ask(path, options, read)
  }
  let body = null
  try {
    body = await (response.ok ? read(response) : response.json())
  } catch (error) {
    if (error.name === 'AbortError') throw error
    if (response.ok && error.name !== 'SyntaxError') {
      throw new Problem('The connection broke', 'The answer of the service broke off. Try again in a moment.')
    }
  }
  if (response.ok && body !== null) return body
  throw new Problem(
    body?.title ?? 'Unexpected answer',
    body?.detail ?? `The service answered with status ${response.status}. Try again in a moment.`,
    {
      kind: body?.type?.split('#')[1] ?? null,
      status: response.status,
      waitSeconds: Number(response.headers.get('Retry-After')) || null,
    },
  )
}

// A WebSocket to the service. The key, if there is one, is a subprotocol, because a browser cannot set a header here.
export function openStream() {
  const address = new URL('stream', location.href)
  address.protocol = address.protocol.replace('http', 'ws')
  const key = sessionStorage.getItem(KEY)
  return new WebSocket(address, key ? ['sound-sentry', `sound-sentry-key.${key}`] : [])
}

// The answer for one recording: from /predict, or by a job if the recording is too large or too long for /predict.
// `tell` is called with words for the progress, and with the share that is done, if it is known.
export async function judge(file, chosen, info, signal, tell) {
  const most = (info.jobs ?? info).limits.max_upload_mib
  if (file.size > most * MIB) {
    throw new Problem('Upload too large', `The file is larger than ${most} MiB. Send a part of it.`)
  }
  if (file.size <= info.limits.max_upload_mib * MIB) {
    try {
      return await send('predict', form('audio', file, chosen), signal, tell)
    } catch (error) {
      if (!info.jobs || error.kind !== 'recording-too-long') throw error
    }
  }
  return judgeAsJob(file, chosen, signal, tell)
}

function form(field, file, chosen) {
  const made = new FormData()
  made.append(field, file, file.name)
  for (const [name, value] of Object.entries(chosen)) made.append(name, value)
  return made
}

// Sends a request, and sends it again up to TRIES times if the service asks to wait.
async function send(path, body, signal, tell, headers = {}) {
  for (let left = TRIES; ; left--) {
    try {
      return await ask(path, { method: 'POST', body, signal, headers })
    } catch (error) {
      if (error.status === null) await checkReadable(body)
      if (!error.waitSeconds || !left) throw error
      tell(error.status === 429 ? 'Waiting: this key has used up its allowance' : 'Waiting: the service is busy')
      await pause(error.waitSeconds, signal)
    }
  }
}

// A browser reports a file that was changed or deleted after it was chosen in the same way as a lost connection.
async function checkReadable(body) {
  const [file] = body.values() // the first field
  try {
    await file.slice(0, 1).arrayBuffer()
  } catch {
    throw new Problem('File not readable', 'The file can no longer be read: it was changed or deleted. Choose it again.')
  }
}

async function judgeAsJob(file, chosen, signal, tell) {
  tell('Uploading')
  const headers = { 'Idempotency-Key': randomName() } // so that a request that is sent again makes no second job
  const { job_id: id } = await send('jobs', form('files', file, chosen), signal, tell, headers)
  const remove = () => ask(`jobs/${id}`, { method: 'DELETE', keepalive: true }).catch(() => {})
  let job
  try {
    job = await follow(id, signal, tell)
  } catch (error) {
    if (signal.aborted) remove() // else the job may go on; the service deletes it later
    throw error
  }
  remove()
  if (!job.results.length) throw new Problem('Stopped', 'The job was stopped. Analyse the recording again.')
  const { status, error, ...answer } = job.results[0]
  if (status === 'failed') throw new Problem(error.title, error.detail, { status: error.status })
  return answer
}

// Not crypto.randomUUID, which a browser only has where the page came over TLS or from this machine.
function randomName() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, '0')).join('')
}

// Waits until the job is finished, and returns it. It listens to the job's events, and listens again after a lost
// connection. If the service has no room for one more listener, it asks for the job itself and then listens again.
// Throws if nothing is heard of the job for OUTAGE_SECONDS after a failure.
async function follow(id, signal, tell) {
  let failed = null // the time of the first failure after the last news of the job
  const show = ({ status, progress }) => {
    failed = null
    tell(status === 'queued' ? 'Waiting in the queue' : 'Analysing', progress)
  }
  const listen = () => ask(`jobs/${id}/events`, { signal }, (response) => lastState(response, show))
  const look = async () => {
    const job = await ask(`jobs/${id}`, { signal })
    show(job)
    return job
  }
  let next = listen
  for (;;) {
    let seconds = PAUSE_SECONDS
    try {
      const job = await next()
      if (job.results && job.finished_at) return job // events before the last have no results
      next = listen
    } catch (error) {
      if (!(error instanceof Problem) || [403, 404].includes(error.status)) throw error
      failed ??= performance.now()
      if (performance.now() - failed > 1000 * OUTAGE_SECONDS) throw error
      if (error.status === 503 || error.status === 429) next = look
      seconds = error.waitSeconds ?? PAUSE_SECONDS
    }
    await pause(seconds, signal)
  }
}

// Reads server-sent events to their end. Returns the job as the last event describes it.
async function lastState(response, show) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader()
  let job = null
  let rest = ''
  for (;;) {
    const { value, done } = await reader.read()
    if (done) return job
    const events = (rest + value).split('\n\n')
    rest = events.pop()
    for (const event of events) {
      const line = event.split('\n').find((part) => part.startsWith('data: '))
      if (!line) continue
      job = JSON.parse(line.slice('data: '.length))
      show(job)
    }
  }
}

function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, 1000 * seconds)
    signal.addEventListener('abort', () => {
      clearTimeout(timer)
      reject(signal.reason)
    })
  })
}
