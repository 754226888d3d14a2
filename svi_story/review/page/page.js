"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const film = document.getElementById("film");
  const slider = document.getElementById("time");
  const now = document.getElementById("now");
  const clips = [...document.querySelectorAll("article.clip")];
  const warnings = [...document.querySelectorAll("[data-warning]")];
  let warned = -1;
  let placed = -1;  // the clip that j and k came to: a film that is not whole may not reach it

  const clock = (t) => {
    const c = Math.round(t * 100);
    return `${Math.floor(c / 6000)}:${String(Math.floor(c / 100) % 60).padStart(2, "0")}.${String(c % 100).padStart(2, "0")}`;
  };

  function show(t) {
    const share = Math.min(Math.max(t / data.seconds, 0), 1);
    now.textContent = clock(t);
    slider.value = Math.floor(t * data.fps);
    slider.setAttribute("aria-valuetext", clock(t));
    for (const head of document.querySelectorAll("line.head")) {
      head.setAttribute("x1", `${share * 100}%`);
      head.setAttribute("x2", `${share * 100}%`);
    }
    for (const figure of document.querySelectorAll("[data-plot]")) {
      const lines = data.plots[figure.dataset.plot] || [];
      for (const out of figure.querySelectorAll("output")) {
        const values = lines[Number(out.dataset.line)].values;
        const value = values[Math.min(Math.floor(share * values.length), values.length - 1)];
        out.textContent = value === null || value === undefined ? "–" : value.toFixed(value < 1 ? 2 : 1);
      }
    }
    let current = 0;
    data.clips.forEach((clip, n) => { if (clip.start <= t + 1e-6) current = n; });
    clips.forEach((clip, n) => clip.classList.toggle("current", n === current));
    return current;
  }

  function seek(t) {
    placed = -1;
    const go = () => { if (!(t > film.duration)) film.currentTime = t; };
    if (film && film.readyState > 0) go();
    else if (film) film.addEventListener("loadedmetadata", go, { once: true });
    show(t);
  }

  const at = () => Number(slider.value) / data.fps;

  function toClip(step) {
    if (!clips.length) return;
    const current = placed >= 0 ? placed : show(at() + 0.001);
    const to = Math.min(Math.max(current + step, 0), clips.length - 1);
    const next = clips[to];
    seek(Number(next.dataset.t));
    placed = to;
    next.focus({ preventScroll: true });
    next.scrollIntoView({ block: "center" });
  }

  slider.addEventListener("input", () => seek((Number(slider.value) + 0.25) / data.fps));
  for (const canvas of document.querySelectorAll("svg.canvas")) {
    const time = (event) => {
      const box = canvas.getBoundingClientRect();
      return ((event.clientX - box.left) / box.width) * data.seconds;
    };
    canvas.addEventListener("pointermove", (event) => show(time(event)));
    canvas.addEventListener("pointerleave", () => show(film ? film.currentTime : at()));
    canvas.addEventListener("click", (event) => seek(time(event)));
  }
  for (const seam of document.querySelectorAll("g.seam")) {
    seam.addEventListener("focus", () => show(Number(seam.dataset.t)));
    seam.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      event.stopPropagation();
      seek(Number(seam.dataset.t));
    });
  }
  for (const link of document.querySelectorAll("a[data-t]")) {
    link.addEventListener("click", (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return;
      seek(Number(link.dataset.t));
      if (!film) return;
      event.preventDefault();
      film.scrollIntoView({ block: "nearest" });
    });
  }
  if (film) film.addEventListener("timeupdate", () => { if (!film.paused) show(film.currentTime); });
  if (film) film.addEventListener("seeked", () => { if (placed < 0) show(film.currentTime); });
  if (film) film.addEventListener("play", () => { placed = -1; });
  let plays = 0;  // a new address each time: all animations that start together are then in step
  for (const group of document.querySelectorAll(".takes")) {
    const all = group.querySelector(".all");
    const loops = [...group.querySelectorAll(".loop")].map((button) => {
      const image = button.firstElementChild;
      return { button, image, still: image.src };
    });
    const isOn = (loop) => loop.button.getAttribute("aria-pressed") === "true";
    const play = (some, on) => {
      plays += 1;
      for (const { button, image, still } of some) {
        image.src = on ? `${image.dataset.loop}#${plays}` : still;
        button.setAttribute("aria-pressed", on);
      }
      const running = loops.every(isOn);
      all.setAttribute("aria-pressed", running);
      all.textContent = running ? "Stop all" : "Play all";
    };
    all.hidden = loops.length < 2;
    all.addEventListener("click", () => play(loops, !loops.every(isOn)));
    for (const loop of loops) loop.button.addEventListener("click", () => play([loop], !isOn(loop)));
  }
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || /^(VIDEO|SUMMARY|BUTTON)$/.test(event.target.tagName) && event.key === " ") return;
    if (event.key === "j") toClip(1);
    else if (event.key === "k") toClip(-1);
    else if (event.key === "w" && warnings.length) {
      warned = (warned + 1) % warnings.length;
      warnings[warned].focus();
      seek(Number(warnings[warned].dataset.t));
    } else if (event.key === " " && film) {
      if (film.paused) film.play(); else film.pause();
    } else return;
    event.preventDefault();
  });
  document.documentElement.classList.add("live");
  show(0);
})();
