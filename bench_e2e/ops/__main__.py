from serving_ops.bench_e2e.ops import main

raise SystemExit(main())
