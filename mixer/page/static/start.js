// What runs when the page is open.

const data = JSON.parse(document.getElementById("data").textContent);
drawCharts(data.charts);
if (data.model) window.view = modelView(data.model, data.samples);
