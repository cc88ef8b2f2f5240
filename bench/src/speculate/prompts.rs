//! What is asked. All but the last ask for much of a text again.

/// A name, and what the user says.
pub(super) const PROMPTS: [(&str, &str); 4] = [
    (
        "repeat",
        "Repeat this text word for word, but write \"harbour\" instead of \"port\".\n\n\
         The old port lies at the mouth of the river, where the water is deep enough for large ships. Every morning the \
         fishermen bring their catch to the market beside the port, and by noon most of it is sold. In the evening the \
         lamps along the quay are lit one after the other, and the last boats come home. On Sundays the market is closed, \
         and families walk along the quay to the lighthouse at the end of the port and back.",
    ),
    (
        "rename",
        "Rewrite this program with the variable `total` renamed to `amount`. Answer with the program only.\n\n\
         def invoice(items, rate):\n    total = 0\n    for name, price, count in items:\n        \
         line = price * count\n        print(name, count, line)\n        total = total + line\n    \
         tax = total * rate\n    print(\"tax\", tax)\n    total = total + tax\n    print(\"total\", total)\n    \
         return total\n",
    ),
    (
        "table",
        "Write this list again, every line with the word \"metres\" instead of \"m\".\n\n\
         Kilimanjaro is a mountain in Tanzania, and it is 5895 m high.\n\
         Mount Kenya is a mountain in Kenya, and it is 5199 m high.\n\
         Mont Blanc is a mountain in France, and it is 4808 m high.\n\
         Matterhorn is a mountain in Switzerland, and it is 4478 m high.\n\
         Mount Fuji is a mountain in Japan, and it is 3776 m high.\n\
         Zugspitze is a mountain in Germany, and it is 2962 m high.\n\
         Ben Nevis is a mountain in Scotland, and it is 1345 m high.",
    ),
    (
        "summarise",
        "Summarise this text in three sentences.\n\n\
         A lighthouse is a tower with a bright lamp at its top, which shows ships at night where the coast is. The first \
         lighthouses were fires on hills. Later they were built of stone, and the lamp was fed with oil, which a keeper \
         had to carry up the stairs every evening. In the nineteenth century a new kind of lens made the light visible \
         from much farther away. Today most lighthouses run by themselves, and ships find their way by satellites, but \
         many towers are kept because people like to visit them.",
    ),
];
