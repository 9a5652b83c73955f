"use strict";
// A click on a caption, a segment or the curve goes to its time.
// The caption of the shown time is marked.
const video = document.querySelector("video");
const picture = document.querySelector("img.shown");
const entries = [...document.querySelectorAll(".captions li[data-start]")];
const blocks = [...document.querySelectorAll(".segments span")];
const starts = entries.map((entry) => Number(entry.dataset.start));
const timeline = document.querySelector(".timeline");
const area = timeline.querySelector(".area");
const playhead = timeline.querySelector(".playhead");
const end = Number(timeline.dataset.end);
let current = -1;

function show(seconds) {
  playhead.style.left = `${Math.min(100, (100 * seconds) / end)}%`;
  // Half a millisecond: a video seeks to the frame at or before the asked time.
  let number = starts.length - 1;
  while (number > 0 && starts[number] > seconds + 0.0005) number -= 1;
  if (number === current || number < 0) return;
  current = number;
  entries.forEach((entry, n) => entry.classList.toggle("current", n === number));
  blocks.forEach((block, n) => block.classList.toggle("current", n === number));
  const entry = entries[number];
  const list = entry.parentElement;
  list.scrollTop = entry.offsetTop - (list.clientHeight - entry.clientHeight) / 2;
  document.querySelector(".now").textContent = entry.querySelector("span").textContent;
  const small = entry.querySelector("img");
  if (picture && small) picture.src = small.src;
}

function go(seconds) {
  if (video) video.currentTime = seconds;
  show(seconds);
}

entries.forEach((entry, number) => {
  entry.addEventListener("click", () => go(starts[number]));
  entry.addEventListener("keydown", (event) => { if (event.key === "Enter") go(starts[number]); });
});
blocks.forEach((block, number) => block.addEventListener("click", (event) => { event.stopPropagation(); go(starts[number]); }));
area.addEventListener("click", (event) => {
  const box = area.getBoundingClientRect();
  go(Math.max(0, Math.min(1, (event.clientX - box.left) / box.width)) * end);
});
if (video) {
  let pending = 0;
  const follow = () => {
    cancelAnimationFrame(pending);
    show(video.currentTime);
    if (!video.paused) pending = requestAnimationFrame(follow);
  };
  for (const event of ["play", "seeked", "timeupdate"]) video.addEventListener(event, follow);
}
show(0);
