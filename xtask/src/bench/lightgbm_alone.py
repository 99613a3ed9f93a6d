"""LightGBM on one thread with Insula's default parameters: python -c … TRAIN.csv HELD_OUT.csv ROWS, prints JSON."""
import json
import sys
import time

import lightgbm
import pandas

train, held_out, rows = sys.argv[1], sys.argv[2], int(sys.argv[3])
begin = time.perf_counter()
table = pandas.read_csv(train).iloc[:rows]
x, y = table.drop(columns="y").to_numpy("float32"), table["y"].to_numpy()
read = time.perf_counter()
model = lightgbm.LGBMClassifier(n_estimators=100, learning_rate=0.1, num_leaves=31, min_child_samples=20, n_jobs=1, verbose=-1)
model.fit(x, y)
fit = time.perf_counter()
other = pandas.read_csv(held_out)
accuracy = float((model.predict(other.drop(columns="y").to_numpy("float32")) == other["y"].to_numpy()).mean())
print(json.dumps({"read_seconds": read - begin, "fit_seconds": fit - read, "accuracy": accuracy}))
