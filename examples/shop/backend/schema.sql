CREATE TABLE IF NOT EXISTS products (
    id          bigint PRIMARY KEY,
    slug        text   NOT NULL UNIQUE,
    name        text   NOT NULL,
    description text   NOT NULL,
    price_cents bigint NOT NULL CHECK (price_cents > 0)
);

CREATE TABLE IF NOT EXISTS orders (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    key         text        NOT NULL UNIQUE, -- the client's: a repeated request finds its order instead of making another
    customer    text        NOT NULL,
    total_cents bigint      NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE IF NOT EXISTS order_items (
    order_id    bigint  NOT NULL REFERENCES orders (id) ON DELETE CASCADE,
    product_id  bigint  NOT NULL REFERENCES products (id),
    quantity    integer NOT NULL CHECK (quantity > 0),
    price_cents bigint  NOT NULL, -- at the time of the order
    PRIMARY KEY (order_id, product_id)
);

CREATE INDEX IF NOT EXISTS orders_newest ON orders (created_at DESC);

INSERT INTO products (id, slug, name, description, price_cents) VALUES
    (1, 'maple-baton', 'Maple baton', 'Thirty-six centimetres of straight-grained maple with a cork grip. Weighs nothing, commands everything.', 2900),
    (2, 'travel-metronome', 'Travel metronome', 'Keeps time from 40 to 208 beats per minute, in a pocket, for a year on one battery.', 3450),
    (3, 'score-stand', 'Score stand', 'Folds flat, stands firm, holds a full Mahler symphony without a sigh.', 5900),
    (4, 'rosin-dark', 'Dark rosin', 'Slow-cooked, amber, generous. For cellos and for patient violins.', 1250),
    (5, 'tuning-fork', 'Tuning fork, 440 Hz', 'Blued steel. The only member of the orchestra that is never wrong.', 1890),
    (6, 'stage-pencil', 'Stage pencils, dozen', 'Soft 4B lead and a magnet at the end, so that they stay on the stand.', 990),
    (7, 'podium', 'Folding podium', 'Twenty centimetres of authority, with a carpet and two handles.', 18900),
    (8, 'page-clips', 'Page clips, set of 8', 'For open-air concerts and open windows. Silent springs.', 1490),
    (9, 'ear-plugs', 'Ear plugs for second violins', 'Evenly damped by 15 dB. The brass will not notice; you will.', 2200),
    (10, 'valve-oil', 'Valve oil', 'Fast, thin and odourless: three things nobody says about trumpeters.', 780),
    (11, 'stand-light', 'Stand light', 'Warm, dimmable, rechargeable; lights two pages and no neighbours.', 3990),
    (12, 'encore-bell', 'Encore bell', 'For the foyer. Two strokes: five minutes. Three strokes: now.', 7400)
ON CONFLICT (id) DO NOTHING;
