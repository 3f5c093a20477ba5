// The microphone, judged while somebody speaks: every half second an answer for the last seconds.

import { palette, sign } from './colours.js'
import { fillGauge } from './gauge.js'
import { canRecord, openMicrophone, recordFrom, turnOff } from './microphone.js'
import { Problem, openStream } from './service.js'
import { $, clock, element } from './words.js'

const TYPE = 'audio/webm;codecs=opus'
const SLICE_MS = 250
const BARS = 120 // of the last minute
const TITLE = document.title

export function canListen() {
  return canRecord() && MediaRecorder.isTypeSupported(TYPE)
}

// Listens until the user stops it or the service ends it. Returns {file, answer, reason} with the answer for the whole
// recording, and why the service ended the stream, if it did. Returns {file, problem} if the stream broke, so that the
// recording is not lost. Throws if nothing was recorded.
export async function listen(chosen, scale, sentence) {
  const microphone = await openMicrophone()
  let socket, recorder
  const send = (data) => socket.readyState === WebSocket.OPEN && socket.send(data) // it may have broken
  const tick = (seconds) => ($('live-time').textContent = clock(Math.floor(seconds), 0))
  try {
    socket = await connect(chosen)
    recorder = recordFrom(microphone, { type: TYPE, sliceMs: SLICE_MS, tick, onSound: send })
  } catch (error) {
    turnOff(microphone)
    socket?.close()
    throw error
  }
  const { file, stop } = recorder
  showNothing()
  $('live-stop').onclick = () => {
    stop()
    $('live-word').textContent = 'The whole recording is being judged.'
    $('live-stop').disabled = true
  }
  let isOver = false // whether the recording ended before the stream
  file.then(() => {
    isOver = true
    send('{"end": true}')
  })
  try {
    const { answer, reason } = await lastAnswer(socket, (update) => showUpdate(update, scale, sentence))
    const ended = isOver ? '' : reason
    stop() // the service may have ended the stream
    return { answer, file: await file, reason: ended }
  } catch (problem) {
    stop()
    const recorded = await file
    if (!recorded.size) throw problem
    return { file: recorded, problem }
  } finally {
    stop()
    socket.close()
    $('live').hidden = true
    document.title = TITLE
  }
}

// ---- the stream

function connect({ operating_point, use_diarization }) {
  const socket = openStream()
  return new Promise((resolve, reject) => {
    socket.addEventListener('open', () => {
      socket.send(JSON.stringify({ format: 'webm', operating_point, use_diarization }))
      resolve(socket)
    })
    socket.addEventListener('close', () =>
      reject(new Problem('No answer', 'The service cannot be reached, or takes no stream. Try again in a moment.')),
    )
  })
}

// Returns the last message of the stream, which is the answer, and the reason that the service gives when it closes the
// stream. `show` is called with each message before it.
function lastAnswer(socket, show) {
  let answer = null
  return new Promise((resolve, reject) => {
    socket.addEventListener('message', ({ data }) => {
      const { final, ...message } = JSON.parse(data)
      if (final === undefined) reject(new Problem(message.title, message.detail, { status: message.status }))
      else if (!final) show(message)
      else {
        const { start, end, ...verdict } = message
        answer = verdict
      }
    })
    socket.addEventListener('close', ({ reason }) => {
      if (answer) resolve({ answer, reason })
      else reject(new Problem('The stream broke', 'The service closed the connection without an answer.'))
    })
  })
}

// ---- what is shown meanwhile

function showNothing() {
  $('live').hidden = false
  $('live-stop').disabled = false
  $('live-stop').focus()
  $('live-word').textContent = 'Listening'
  $('live-gauge').hidden = true
  for (const list of ['live-reasons', 'live-history', 'live-alarms']) $(list).replaceChildren()
}

function showUpdate(update, scale, sentence) {
  if ($('live-stop').disabled) return // it is stopped
  const { overall, reasons } = update
  // A screen reader reads the text again each time it is set.
  if ($('live-word').textContent !== overall) $('live-word').textContent = overall
  document.title = `${overall} – ${TITLE}`
  fillGauge($('live-gauge'), update, scale)
  $('live-reasons').replaceChildren(...reasons.map((word) => element('li', {}, sentence(word))))
  showBar(update)
  if (overall === 'Fake') showAlarm(update)
}

function showBar({ mean_probability: probability, overall: result }) {
  const bar = element('div', { className: 'sign' })
  sign(bar, { probability, result }, palette())
  bar.style.height = probability === null ? '0' : `${100 * (0.15 + 0.85 * probability)}%`
  const history = $('live-history')
  history.append(bar)
  while (history.children.length > BARS) history.firstChild.remove()
}

// Alarms without a gap between them share one line. Its end changes with each answer, and is not read out each time.
function showAlarm({ start, end }) {
  const alarms = $('live-alarms')
  const last = alarms.lastChild
  const goesOn = last && start <= Number(last.dataset.end)
  const line = goesOn
    ? last
    : element('li', {}, `Sounded machine-made from ${clock(start)} to `, element('span', { ariaLive: 'off' }), '.')
  line.dataset.end = end
  line.querySelector('span').textContent = clock(end)
  if (!goesOn) alarms.append(line)
}
