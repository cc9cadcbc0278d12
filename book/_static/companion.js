// Sliders ask MathJax to set their labels in the words of its version 2; the book ships version 3.
document.addEventListener("DOMContentLoaded", () => {
  if (window.MathJax && !window.MathJax.Hub) {
    window.MathJax.Hub = { Queue: ([, , element]) => window.MathJax.startup.promise.then(() => window.MathJax.typesetPromise([element])) };
  }
});

// The scorecard's filter: shows the rows of one paper, one verdict, or both. Without scripts the whole table is shown.
document.addEventListener("DOMContentLoaded", () => {
  const form = document.querySelector("form.scorecard-filter");
  const table = document.querySelector("table.scorecard");
  if (!form || !table) return;
  form.hidden = false;
  const apply = () => {
    const paper = form.elements.paper.value;
    const verdict = form.elements.verdict.value;
    let shown = 0;
    for (const body of table.tBodies) {
      let inBody = 0;
      for (const row of body.querySelectorAll("tr[data-verdict]")) {
        row.hidden = Boolean((paper && body.dataset.paper !== paper) || (verdict && row.dataset.verdict !== verdict));
        if (!row.hidden) inBody += 1;
      }
      body.hidden = inBody === 0;
      shown += inBody;
    }
    form.querySelector("output").textContent = `${shown} claims shown`;
  };
  form.addEventListener("change", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  apply();
});
