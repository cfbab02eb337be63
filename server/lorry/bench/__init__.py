"""`lorry bench`: a load for a server, and what came back.

    preset, workload     what is asked for: rows of a table, each with its load
    popularity, arrivals which adapter a request names, and when it is sent
    prompts              the words of it
    targets              how it is said to our server, an OpenAI one, llama.cpp's
    connection, answer   a small HTTP client, because the load shares the server's cores
    load                 sends a row's requests and notes when each token came
    figures              samples -> percentiles, medians of repeats
    answers              each greedy request once more, alone
    adapters             adapters made at random, deterministic, as PEFT folders
    own_server, memory   a server of our own to ask, and what it takes
    machine, report, plot    where it was measured, the table, the JSON, the picture

Nothing here imports torch: the load generator runs beside the server, on its cores.
"""
